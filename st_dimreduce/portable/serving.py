"""What a model card says of readers other than Sentence Transformers: tags, snippets and a table.

The commands are those of the readers' own documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from st_dimreduce.base_head import CONFIG
from st_dimreduce.enums import Outcome, Variant
from st_dimreduce.portable.check import check
from st_dimreduce.portable.graphs import EXPORT
from st_dimreduce.portable.layout import GRAPHS
from st_dimreduce.portable.readers import Reading
from st_dimreduce.untrusted import harmless, read_object

BROWSER, VLLM = "transformers.js", "vLLM"
SERVERS = ("Text Embeddings Inference, Candle", "Text Embeddings Inference, CPU")
# `Config` of backends/candle/src/lib.rs in huggingface/text-embeddings-inference.
SERVED_TYPES = {"bert", "camembert", "distilbert", "gemma3_text", "gte", "mistral", "modernbert", "mpnet", "new"}
SERVED_TYPES |= {"nomic_bert", "qwen2", "qwen3", "roberta", "xlm-roberta"}
_POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last_token"}  # ours, and what transformers.js calls them
_DTYPES = {Variant.FP32: "fp32", Variant.FP16: "fp16", Variant.INT8: "q8"}  # as transformers.js calls them
_GIVES = {
    Outcome.RIGHT: "this model's vectors",
    Outcome.UNREDUCED: "vectors that are not reduced",
    Outcome.DIFFERENT: "other vectors",
    Outcome.FAILS: "an error",
}
_SERVER = """```bash
text-embeddings-router --model-id "{name}" --port 8080
curl 127.0.0.1:8080/embed -H 'Content-Type: application/json' -d '{{"inputs": "A sentence"}}'
```"""
_VLLM = """```bash
vllm serve "{name}" --runner pooling
curl 127.0.0.1:8000/v1/embeddings -H 'Content-Type: application/json' \\
  -d '{{"model": "{name}", "input": "A sentence"}}'
```"""
_BROWSER = """```js
import {{ pipeline }} from "@huggingface/transformers";

const extractor = await pipeline("feature-extraction", "{name}", {{ dtype: "{dtype}" }});{hint}
const embeddings = await extractor(["A sentence"], {{ pooling: "{pooling}", normalize: true }});
```"""


@dataclass(frozen=True)
class Serving:
    """What readers make of a model's folder, and what they call what is in it.

    Attributes:
        readings: What each reader makes of it.
        model_type: Kind of transformer, as its settings say; empty if they do not.
        pooling: Pooling of the graph's tokens, as transformers.js calls it; None if there is no graph to pool.
        dtypes: Number formats of the graphs, as transformers.js calls them.
    """

    readings: list[Reading]
    model_type: str = ""
    pooling: str | None = None
    dtypes: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> Serving:
        """Look at a model's folder.

        Raises:
            UserError: If the folder is not a model or is damaged.
        """
        config, export = (read_object(folder / name) if (folder / name).exists() else {} for name in (CONFIG, EXPORT))
        dtypes = tuple(dtype for variant, dtype in _DTYPES.items() if (folder / GRAPHS[variant]).exists())
        pooling = _POOLINGS.get(str(export.get("pooling")))
        return cls(check(folder).readers, str(config.get("model_type", "")), pooling, dtypes)

    @property
    def in_browser(self) -> bool:
        """Whether transformers.js gives the model's vectors, by a pooling that it knows."""
        return self._is_right(BROWSER) and self.pooling is not None

    @property
    def by_server(self) -> bool:
        """Whether Text Embeddings Inference gives the model's vectors, on any machine."""
        return all(map(self._is_right, SERVERS)) and self.model_type in SERVED_TYPES

    def _is_right(self, reader: str) -> bool:
        return any(each.reader == reader and each.outcome is Outcome.RIGHT for each in self.readings)

    def tags(self) -> list[str]:
        """Return the tags by which people look for models on the Hub."""
        tags = {"onnx": bool(self.dtypes), BROWSER: self.in_browser, "text-embeddings-inference": self.by_server}
        return [tag for tag, holds in tags.items() if holds]

    def section(self, name: str) -> str:
        """Return the card's section about readers: a snippet for each that is right, and what the others do.

        Args:
            name: Name of the model, or what stands for it.
        """
        if not self.readings:
            return ""
        smaller = ", ".join(f'"{dtype}"' for dtype in self.dtypes[1:])
        hint = f" // smaller: {smaller}" if smaller else ""
        dtype = self.dtypes[0] if self.dtypes else ""
        snippets = {
            BROWSER: (self.in_browser, _BROWSER.format(name=name, dtype=dtype, hint=hint, pooling=self.pooling)),
            "Text Embeddings Inference": (self.by_server, _SERVER.format(name=name)),
            VLLM: (self._is_right(VLLM), _VLLM.format(name=name)),
        }
        parts = [f"{title}:\n\n{snippet}\n" for title, (holds, snippet) in snippets.items() if holds]
        same: dict[str, list[str]] = {}  # readers that do the same, in one line
        for each in self.readings:
            why = "" if each.outcome is Outcome.RIGHT else f": {harmless(each.why)}"
            same.setdefault(_GIVES[each.outcome] + why, []).append(each.reader)
        rows = [f"| {'; '.join(readers)} | {gives} |" for gives, readers in same.items()]
        return "\n".join(["## Other readers\n", *parts, "| reader | gives |", "| --- | --- |", *rows, ""])
