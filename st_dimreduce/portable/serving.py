"""What a model card says of readers other than Sentence Transformers: tags, snippets and a table.

The commands are those of the readers' own documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from st_dimreduce.base_head import CONFIG
from st_dimreduce.enums import Outcome
from st_dimreduce.portable.graphs import EXPORT
from st_dimreduce.portable.readers import Reading, check_readers
from st_dimreduce.untrusted import harmless, read_object

BROWSER, VLLM = "transformers.js", "vLLM"
SERVERS = ("Text Embeddings Inference, Candle", "Text Embeddings Inference, CPU")
GRAPH = "onnx/model.onnx"
# `Config` of backends/candle/src/lib.rs in huggingface/text-embeddings-inference.
SERVED_TYPES = {"bert", "camembert", "distilbert", "gemma3_text", "gte", "mistral", "modernbert", "mpnet", "new"}
SERVED_TYPES |= {"nomic_bert", "qwen2", "qwen3", "roberta", "xlm-roberta"}
_POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last_token"}  # ours, and what transformers.js calls them
_DTYPES = {GRAPH: "fp32", "onnx/model_fp16.onnx": "fp16", "onnx/model_quantized.onnx": "q8"}
_GIVES = {
    Outcome.RIGHT: "this model's vectors",
    Outcome.UNREDUCED: "vectors that are not reduced",
    Outcome.DIFFERENT: "other vectors",
    Outcome.FAILS: "an error",
}


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
            ValueError: If the folder is no model or is damaged.
        """
        config, export = (read_object(folder / name) if (folder / name).exists() else {} for name in (CONFIG, EXPORT))
        dtypes = tuple(dtype for where, dtype in _DTYPES.items() if (folder / where).exists())
        pooling = _POOLINGS.get(str(export.get("pooling")))
        return cls(check_readers(folder), str(config.get("model_type", "")), pooling, dtypes)

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
        tags = {"onnx": "fp32" in self.dtypes, BROWSER: self.in_browser, "text-embeddings-inference": self.by_server}
        return [tag for tag, holds in tags.items() if holds]

    def section(self, name: str) -> str:
        """Return the card's section about readers: a snippet for each that is right, and what the others do.

        Args:
            name: Name of the model, or what stands for it.
        """
        snippets = {
            BROWSER: (self.in_browser, self._browser(name)),
            "Text Embeddings Inference": (self.by_server, _server(name)),
            "vLLM": (self._is_right(VLLM), _vllm(name)),
        }
        parts = [f"{title}:\n\n{snippet}\n" for title, (holds, snippet) in snippets.items() if holds]
        return "\n".join(["## Other readers\n", *parts, self._table()]) if self.readings else ""

    def _table(self) -> str:
        """Lay out what readers do, those that do the same in one line."""
        lines: dict[str, list[str]] = {}
        for each in self.readings:
            why = "" if each.outcome is Outcome.RIGHT else f": {harmless(each.why)}"
            lines.setdefault(_GIVES[each.outcome] + why, []).append(each.reader)
        rows = [f"| {'; '.join(readers)} | {gives} |" for gives, readers in lines.items()]
        return "\n".join(["| reader | gives |", "| --- | --- |", *rows, ""])

    def _browser(self, name: str) -> str:
        smaller = [f'"{dtype}"' for dtype in self.dtypes if dtype != "fp32"]
        hint = f" // smaller: {', '.join(smaller)}" if smaller else ""
        return f"""```js
import {{ pipeline }} from "@huggingface/transformers";

const extractor = await pipeline("feature-extraction", "{name}", {{ dtype: "fp32" }});{hint}
const embeddings = await extractor(["A sentence"], {{ pooling: "{self.pooling}", normalize: true }});
```"""


def _server(name: str) -> str:
    return f"""```bash
text-embeddings-router --model-id "{name}" --port 8080
curl 127.0.0.1:8080/embed -H 'Content-Type: application/json' -d '{{"inputs": "A sentence"}}'
```"""


def _vllm(name: str) -> str:
    return f"""```bash
vllm serve "{name}" --runner pooling
curl 127.0.0.1:8000/v1/embeddings -H 'Content-Type: application/json' \\
  -d '{{"model": "{name}", "input": "A sentence"}}'
```"""
