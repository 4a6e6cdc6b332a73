"""Export of a reduced model or a head as one graph for ONNX Runtime or OpenVINO."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer
from torch import nn

from st_dimreduce.codes.precision import quantize
from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.enums import Format, Precision
from st_dimreduce.files import check_target, new_folder, write_json
from st_dimreduce.head import Head, HeadLike
from st_dimreduce.models.load import load_head, load_model
from st_dimreduce.portable.save import unportable
from st_dimreduce.portable.verify import KEPT, TEXTS, compare_vectors, encode_as_it_was, special_words
from st_dimreduce.progress import progress_bar
from st_dimreduce.runtimes.graph import head_graph, model_graph

SETTINGS = "export.json"
MOST_WEIGHTS = 500_000_000  # 2 GB of float32: what one ONNX file holds
_NO_LIMIT = 10**9  # tokenizers without a maximum length report a huge one
_SUFFIXES = {Format.ONNX: "onnx", Format.OPENVINO: "xml"}
_MOST_CODES = 0.01  # share of the codes whose entries may lie on the edge between two
_NEEDED = {Format.ONNX: ("onnx", "onnxruntime", "onnxscript"), Format.OPENVINO: ("onnx", "onnxscript", "openvino")}


def export(
    source: SentenceTransformer | HeadLike | str | os.PathLike[str],
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
    ``encode`` returns. Token types are zeros. ``tokenizer.json`` is written beside it: the ``tokenizers`` library
    alone makes the inputs from it, truncated and padded. A head becomes ``head.onnx`` (``head.xml``, ``head.bin``),
    from ``embedding``, float32 of shape (batch, d), to ``reduced``: the rows of norm 1 that
    :func:`st_dimreduce.reduce_vectors` stores. Batch and length are dynamic. ``export.json`` holds the sizes, and a
    model's prompts and maximum length. Before the folder gets its name the graph is run, and what it gives is compared
    with the model or head.

    With a precision there is a second output, ``codes``: what :func:`st_dimreduce.quantize` makes of the first, except
    for entries on the very edge between two codes.

    OpenVINO computes in bfloat16 where the processor can: compile the graph with
    ``{"INFERENCE_PRECISION_HINT": "f32"}`` to get the same vectors.

    Args:
        source: A reduced model that the portable form can hold, or a head; or the name or folder of one.
        path: The folder to make. It appears when it is complete.
        format: ``"onnx"`` (the default) or ``"openvino"``.
        precision: Precision of the codes; no codes if ``"float32"``. Defaults to what the head was fitted for.
        overwrite: Replace an export that is there. Defaults to False.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).

    Returns:
        The file of the graph.

    Raises:
        FileExistsError: If ``path`` exists and ``overwrite`` is False, or holds no export.
        ModuleNotFoundError: If the extra of the format is not installed.
        OSError: If the disk is full, or refuses otherwise.
        ValueError: If there is no model or head, it holds something that such a graph cannot hold, or it has over
            500 million weights.
    """
    format, target = Format(format), check_target(path, overwrite, SETTINGS)  # noqa: A001
    missing = [name for name in _NEEDED[format] if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"{', '.join(missing)} is missing: pip install 'st_dimreduce[{format.value}]'")
    import onnx  # noqa: PLC0415, optional

    with progress_bar("Exporting", "steps", show_progress_bar, total=3) as bar:
        opened = _open(source)
        tokenizer: Tokenizer | None = None
        if isinstance(opened, Head):
            precision = Precision(precision or opened.precision)
            bar.update()
            name, graph = "head", head_graph(opened, precision)
            settings: dict[str, Any] = {"in_features": opened.in_features}
        else:
            if problems := unexportable(opened):
                raise ValueError(f"this model cannot be exported: {'; '.join(problems)}")
            precision = Precision(precision or DimReduce.from_model(opened).precision)
            bar.update()
            tokenizer = _tokenizer(opened[0])
            name, graph = "model", model_graph(opened, precision)
            settings = _input_settings(opened, tokenizer)
        bar.update()
        onnx.checker.check_model(graph)
        outputs = graph.graph.output
        settings |= {
            "dimensions": outputs[0].type.tensor_type.shape.dim[1].dim_value,
            "precision": precision.value,
            "outputs": [output.name for output in outputs],
        }
        with new_folder(target, overwrite, SETTINGS) as folder:
            onnx.save(graph, folder / f"{name}.onnx")
            if format is Format.OPENVINO:
                _to_openvino(folder / f"{name}.onnx", target)
            if tokenizer:
                tokenizer.save(str(folder / "tokenizer.json"))
            write_json(folder / SETTINGS, settings)
            _check_graph(folder / f"{name}.{_SUFFIXES[format]}", opened, tokenizer, precision)
        bar.update()
    return target / f"{name}.{_SUFFIXES[format]}"


def _check_graph(
    path: Path, source: SentenceTransformer | Head, tokenizer: Tokenizer | None, precision: Precision
) -> None:
    """Run the graph that was written and compare what it gives with what it was made of.

    Raises:
        ValueError: If a vector differs by more than rounding, or more than a few codes do.
    """
    if isinstance(source, Head):
        rows = np.random.default_rng(0).standard_normal((64, source.in_features), np.float32)
        expected = source.reduce_stored(rows, normalize_embeddings=True)
        outputs = _run(path, {"embedding": rows})
    else:
        texts = [*TEXTS, special_words(source)]
        expected = encode_as_it_was(source, texts)
        prompt = source.prompts.get(source.default_prompt_name or "") or ""
        read = cast("Tokenizer", tokenizer).encode_batch([prompt + text for text in texts])
        fields = {"input_ids": [row.ids for row in read], "attention_mask": [row.attention_mask for row in read]}
        outputs = _run(path, {name: np.array(rows, np.int64) for name, rows in fields.items()})
    compare_vectors(expected, outputs[0], "in a runtime")
    for codes in outputs[1:]:
        wanted = quantize(outputs[0], precision)
        differing = np.mean(wanted != codes)
        if codes.dtype != wanted.dtype or differing > _MOST_CODES:
            raise ValueError(f"{differing:.1%} of the codes that the graph gives are not those of quantize: {KEPT}")


def _run(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of a graph, in their order, from the runtime that it is for."""
    if path.suffix == ".onnx":
        import onnxruntime  # noqa: PLC0415, optional

        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)
    with _without_telemetry():
        import openvino  # noqa: PLC0415, optional
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(feeds)
    return [found[output] for output in compiled.outputs]


def _open(source: SentenceTransformer | HeadLike | str | os.PathLike[str]) -> SentenceTransformer | Head:
    if isinstance(source, (str, os.PathLike)):
        folder = Path(source)
        is_head = folder.is_dir() and not (folder / "modules.json").exists()
        return load_head(folder) if is_head else load_model(source)
    return source if isinstance(source, SentenceTransformer) else source.to_head()


def unexportable(model: SentenceTransformer, most_weights: int = MOST_WEIGHTS) -> list[str]:
    """Name everything in a model that one graph cannot hold, and what to do about it."""
    problems = unportable(list(model))
    excludes_prompt = any(isinstance(module, Pooling) and not module.include_prompt for module in model)
    if excludes_prompt and any(model.prompts.values()):
        problems.append("its Pooling leaves out the prompt, whose length a graph does not know")
    weights = sum(weight.numel() for weight in model.parameters())
    if weights > most_weights:
        problems.append(f"it has {weights:,} weights, one ONNX file holds {most_weights:,}")
    return problems


def _to_openvino(path: Path, target: Path) -> None:
    """Replace an ONNX file by OpenVINO's two."""
    with _without_telemetry():
        import openvino  # noqa: PLC0415, optional
    graph = openvino.Core().read_model(path)
    try:
        openvino.save_model(graph, path.with_suffix(".xml"), compress_to_fp16=False)
    except RuntimeError as error:  # of the disk, without a number that says which
        reason = " ".join(str(error).split())
        raise OSError(f"OpenVINO could not write {target} ({reason}): free some space there and call again") from error
    path.unlink()


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Import OpenVINO without the package by which it reports to its makers: nothing is sent that nobody asked for."""
    known = "openvino_telemetry" in sys.modules
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if not known:
            del sys.modules["openvino_telemetry"]


def _tokenizer(module: nn.Module) -> Tokenizer:
    """Return a copy of a model's tokenizer that truncates and pads by itself.

    Raises:
        ValueError: If the model's tokenizer is none of the ``tokenizers`` library.
    """
    if isinstance(module, StaticEmbedding):
        spec = json.loads(module.tokenizer.to_str()) | {"post_processor": None}  # it reads no [CLS] and [SEP]
        tokenizer = Tokenizer.from_str(json.dumps(spec))
        tokenizer.enable_padding()
        return tokenizer
    own: Any = module.tokenizer
    if not isinstance(getattr(own, "backend_tokenizer", None), Tokenizer):
        raise ValueError(
            f"this model cannot be exported: its tokenizer is a {type(own).__name__}, which has no tokenizer.json: use "
            "one that has"
        )
    tokenizer = Tokenizer.from_str(own.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    if own.model_max_length and own.model_max_length < _NO_LIMIT:
        tokenizer.enable_truncation(own.model_max_length, direction=own.truncation_side)
    tokenizer.enable_padding(
        direction=own.padding_side,
        pad_id=own.pad_token_id or 0,
        pad_type_id=own.pad_token_type_id,
        pad_token=own.pad_token or "[PAD]",
    )
    return tokenizer


def _input_settings(model: SentenceTransformer, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "max_seq_length": (tokenizer.truncation or {}).get("max_length"),
        "prompts": {name: prompt or "" for name, prompt in model.prompts.items()},
        "default_prompt_name": model.default_prompt_name,
        "similarity_fn_name": model.similarity_fn_name,
    }
