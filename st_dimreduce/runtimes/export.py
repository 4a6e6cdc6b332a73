"""A reduced model, or a head by itself, as a graph that other runtimes read: ONNX Runtime, OpenVINO."""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the name everybody gives it

from st_dimreduce.files import check_target, new_folder
from st_dimreduce.enums import Choice
from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.models.encoder import load_model
from st_dimreduce.models.heads import load_head
from st_dimreduce.portable import RECORD, unportable, write_json
from st_dimreduce.codes.precision import Precision
from st_dimreduce.progress import progress_bar
from st_dimreduce.untrusted import read_object

SETTINGS = "export.json"
_NO_LIMIT = 10**9  # tokenizers without a maximum length report a huge one
_MOST_WEIGHTS = 500_000_000  # 2 GB of float32: what one ONNX file holds


class Format(Choice):
    """What the graph is written as."""

    ONNX = "onnx"
    OPENVINO = "openvino"


_NEEDED = {Format.ONNX: ("onnx", "onnxscript"), Format.OPENVINO: ("onnx", "onnxscript", "openvino")}


def export(
    source: SentenceTransformer | DimReduce | str | os.PathLike[str],
    path: str | os.PathLike[str],
    format: Format | str = Format.ONNX,  # noqa: A002, the word for it
    *,
    precision: Precision | str | None = None,
    overwrite: bool = False,
    show_progress_bar: bool | None = None,
) -> Path:
    """Write a reduced model or a head as one graph, which needs neither torch nor this package to run.

    A model becomes ``model.onnx`` (OpenVINO: ``model.xml`` and ``model.bin``), from ``input_ids`` and
    ``attention_mask``, int64 of shape (batch, length), to ``sentence_embedding``, float32 of shape (batch, k): what
    ``encode`` returns. Token types are zeros. Beside it is ``tokenizer.json``: the ``tokenizers`` library alone makes
    the inputs from it, cut and padded. A head becomes ``head.onnx`` (``head.xml``, ``head.bin``), from ``embedding``,
    float32 of shape (batch, d), to ``reduced``: the unit rows that :func:`st_dimreduce.reduce_vectors` stores. Batch
    and length are free. ``export.json`` names the sizes, and a model's prompts and maximum length.

    With a precision there is a second output, ``codes``: what :func:`st_dimreduce.quantize` makes of the first, but
    for entries on the very edge between two codes.

    OpenVINO computes in bfloat16 where the processor can: ask for ``{"INFERENCE_PRECISION_HINT": "f32"}`` when
    compiling the graph to get the same vectors.

    Args:
        source: A reduced model that the portable form can hold, or a head; or the name or folder of one.
        path: The folder to make. It appears when it is complete.
        format: ``"onnx"`` (the default) or ``"openvino"``.
        precision: What codes to give; no codes if ``"float32"``. Defaults to what the head was fitted for.
        overwrite: Replace an export that is there. Defaults to False.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).

    Returns:
        The file of the graph.

    Raises:
        FileExistsError: If ``path`` exists and ``overwrite`` is False, or is no export.
        ModuleNotFoundError: If the extra of the format is not installed.
        ValueError: If there is no model or head, it holds something that has no place in such a graph, or it has over
            500 million weights.
    """
    format, target = Format(format), check_target(path, overwrite, SETTINGS)  # noqa: A001
    missing = [name for name in _NEEDED[format] if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"{', '.join(missing)} is missing: pip install 'st_dimreduce[{format.value}]'")
    import onnx  # noqa: PLC0415, optional

    from st_dimreduce.runtimes.graph import add_codes, head_graph  # noqa: PLC0415, needs onnx

    with progress_bar("Exporting", "steps", show_progress_bar, total=3) as bar:
        opened, fitted_for = _opened(source)
        precision = Precision(precision or fitted_for)
        bar.update()
        tokenizer: Tokenizer | None = None
        if isinstance(opened, DimReduce):
            name, graph, settings = "head", head_graph(opened), {"in_features": opened.in_features}
        else:
            tokenizer = _tokenizer(opened[0])
            name, graph, settings = "model", _traced(opened), _reading(opened, tokenizer)
        settings |= {"dimensions": graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value}
        bar.update()
        if precision is not Precision.FLOAT32:
            add_codes(graph, precision)
        onnx.checker.check_model(graph)
        with new_folder(target, overwrite, SETTINGS) as folder:
            onnx.save(graph, folder / f"{name}.onnx")
            if format is Format.OPENVINO:
                _to_openvino(folder / f"{name}.onnx")
            if tokenizer:
                tokenizer.save(str(folder / "tokenizer.json"))
            outputs = [output.name for output in graph.graph.output]
            write_json(folder / SETTINGS, settings | {"precision": precision.value, "outputs": outputs})
        bar.update()
    return target / f"{name}.{'xml' if format is Format.OPENVINO else 'onnx'}"


def _opened(source: Any) -> tuple[SentenceTransformer | DimReduce, str]:
    """Return the model or the head, and the precision that it was fitted for."""
    if isinstance(source, DimReduce):
        return source, source.precision
    if isinstance(source, SentenceTransformer):
        _check(source)
        return source, DimReduce.from_model(source).precision
    folder = Path(source)
    if folder.is_dir() and not (folder / "modules.json").exists():
        return _opened(load_head(folder))
    model, record = load_model(source), folder / RECORD
    _check(model)
    said = read_object(record) if record.is_file() else {}
    return model, said.get("precision", "float32")


def _check(model: SentenceTransformer) -> None:
    problems = unportable(list(model))
    if any(isinstance(module, Pooling) and not module.include_prompt for module in model) and any(
        model.prompts.values()
    ):
        problems.append("its Pooling leaves out the prompt, which a graph cannot tell from the text")
    weights = sum(weight.numel() for weight in model.parameters())
    if weights > _MOST_WEIGHTS:
        problems.append(f"it has {weights:,} weights, one ONNX file holds {_MOST_WEIGHTS:,}")
    if problems:
        raise ValueError(f"this model cannot be exported: {'; '.join(problems)}")


class _Encode(nn.Module):
    """From token ids to embeddings: what ``SentenceTransformer.encode`` does behind the tokenizer."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        modules: list[Any] = copy.deepcopy(list(model))
        if isinstance(modules[0], StaticEmbedding):
            modules[0] = _MaskedMean(modules[0].embedding.weight)
            self.token_types = False
        else:
            self.token_types = "token_type_ids" in model.preprocess(["a text"])
            modules[0].auto_model.set_attn_implementation("eager")  # the other ones leave checks for NaN in the graph
        self.chain = nn.ModuleList(modules).float().cpu().eval()
        self.size = model.truncate_dim

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.token_types:
            features["token_type_ids"] = torch.zeros_like(input_ids)
        for module in self.chain:
            features = module(features)
        return features["sentence_embedding"][:, : self.size]


class _MaskedMean(nn.Module):
    """``StaticEmbedding`` for padded ids."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = features["attention_mask"].unsqueeze(-1).to(self.weight.dtype)
        total = (F.embedding(features["input_ids"], self.weight) * mask).sum(dim=1)
        return {"sentence_embedding": total / mask.sum(dim=1).clamp(min=1)}


def _traced(model: SentenceTransformer) -> Any:
    """Return the ONNX graph of a model, of type ``onnx.ModelProto``."""
    from st_dimreduce.runtimes.graph import OPSET  # noqa: PLC0415, needs onnx

    ids = torch.zeros((2, 4), dtype=torch.int64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    axes = {0: "batch", 1: "length"}
    with _quiet(), torch.no_grad():
        try:
            program: Any = torch.onnx.export(
                _Encode(model),
                (ids, mask),
                dynamo=True,
                dynamic_shapes=(axes, axes),
                input_names=["input_ids", "attention_mask"],
                output_names=["sentence_embedding"],
                opset_version=OPSET,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise ValueError(f"this model cannot be exported: torch finds no graph for it: {reason}") from error
    graph = program.model_proto
    for part in (graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        part.ClearField("metadata_props")  # where in which file each line of code stands, on this machine
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what the exporter says of packages that are not there and names that will change."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _to_openvino(path: Path) -> None:
    known = "openvino_telemetry" in sys.modules
    # Where it is found, importing openvino tells its makers so: nothing is sent that nobody asked for.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino  # noqa: PLC0415, optional
    finally:
        if not known:
            del sys.modules["openvino_telemetry"]
    graph = openvino.Core().read_model(path)
    try:
        openvino.save_model(graph, path.with_suffix(".xml"), compress_to_fp16=False)
    except RuntimeError as error:  # of the disk, and does not say which
        said = " ".join(str(error).split())
        raise OSError(f"OpenVINO could not write {path.parent} ({said}): make room there and call again") from error
    path.unlink()


def _tokenizer(module: nn.Module) -> Tokenizer:
    """Return a copy of a model's tokenizer that cuts and pads by itself.

    Raises:
        ValueError: If it is none of the ``tokenizers`` library.
    """
    if isinstance(module, StaticEmbedding):
        spec = json.loads(module.tokenizer.to_str()) | {"post_processor": None}  # it sees no [CLS] and [SEP]
        tokenizer = Tokenizer.from_str(json.dumps(spec))
        tokenizer.enable_padding()
        return tokenizer
    own: Any = module.tokenizer
    if not isinstance(getattr(own, "backend_tokenizer", None), Tokenizer):
        raise ValueError(f"its tokenizer is a {type(own).__name__}, which has no tokenizer.json: use one that has")
    tokenizer = Tokenizer.from_str(own.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    if own.model_max_length and own.model_max_length < _NO_LIMIT:
        tokenizer.enable_truncation(own.model_max_length, direction=own.truncation_side)
    pad = {"pad_id": own.pad_token_id or 0, "pad_token": own.pad_token or "[PAD]"}
    tokenizer.enable_padding(direction=own.padding_side, pad_type_id=own.pad_token_type_id, **pad)
    return tokenizer


def _reading(model: SentenceTransformer, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "max_seq_length": (tokenizer.truncation or {}).get("max_length"),
        "prompts": {name: prompt or "" for name, prompt in model.prompts.items()},
        "default_prompt_name": model.default_prompt_name,
        "similarity_fn_name": model.similarity_fn_name,
    }
