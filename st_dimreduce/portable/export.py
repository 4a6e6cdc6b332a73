"""Export of a reduced model or a head as one graph for ONNX Runtime or OpenVINO."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer
from torch import nn

from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.precision import quantize
from st_dimreduce.dim_reduce import head_of
from st_dimreduce.enums import Format, Precision, Variant
from st_dimreduce.errors import MissingExtraError, UserError
from st_dimreduce.files import check_target, new_folder, write_json
from st_dimreduce.models.load import load_head, load_model, no_model
from st_dimreduce.portable.graph import EmbedTokens, head_graph, model_graph, write_variant
from st_dimreduce.portable.graphs import EXPORT, files_of
from st_dimreduce.portable.layout import TOKENIZER
from st_dimreduce.portable.save import unportable, write_settings
from st_dimreduce.portable.verify import KEPT, TEXTS, compare_vectors, encode_as_it_was, special_words
from st_dimreduce.progress import progress_bar

if TYPE_CHECKING:
    from onnx import ModelProto

SETTINGS = EXPORT
MOST_WEIGHTS = 500_000_000  # 2 GB of float32: what one ONNX file holds
_NO_LIMIT = 10**9  # tokenizers without a maximum length report a huge one
_SUFFIXES = {Format.ONNX: "onnx", Format.OPENVINO: "xml"}
_NAMES = {Format.ONNX: "onnx/model", Format.OPENVINO: "openvino/openvino_model"}  # where readers look for a model
_VARIANTS = {Variant.FP16: "model_fp16", Variant.INT8: "model_quantized"}  # as transformers.js calls them
_MOST_CODES = 0.01  # share of the codes whose entries may lie on the edge between two
_NEEDED = {Format.ONNX: ("onnx", "onnxruntime", "onnxscript"), Format.OPENVINO: ("onnx", "onnxscript", "openvino")}


def export(
    source: SentenceTransformer | BaseHead | str | os.PathLike[str],
    path: str | os.PathLike[str],
    format: Format | str = Format.ONNX,  # noqa: A002, the word for it
    *,
    precision: Precision | str | None = None,
    variants: Sequence[Variant | str] = (),
    overwrite: bool = False,
) -> Path:
    """Write a reduced model or a head as a graph, which needs neither torch nor this package to run.

    A model becomes ``onnx/model.onnx`` (OpenVINO: ``openvino/openvino_model.xml`` and ``.bin``) in a folder that
    readers of such graphs know. From ``input_ids`` and ``attention_mask``, int64 of shape (batch, length), with token
    types of zero, it computes:

    - ``last_hidden_state``, float32 of shape (batch, length, k): reduced embeddings of the tokens, for readers that
      pool by themselves, with the model's own pooling. It is left out, and a warning says why, where that would give
      other vectors: a pooling other than mean, cls or lasttoken, or a head whose Tanh is not linear.
    - ``sentence_embedding``, float32 of shape (batch, k): what ``encode`` returns.
    - ``codes``, with a precision: what :func:`st_dimreduce.quantize` makes of the sentence embedding, except for
      entries on the very edge between two codes.

    Beside it lie the files of the tokenizer, of which ``tokenizer.json`` alone makes the inputs, truncated and padded;
    ``config.json``; and, where tokens are an output, ``modules.json`` and ``1_Pooling`` for readers that take the graph
    for the transformer: the head is in it. A head becomes ``head.onnx`` (``head.xml``, ``head.bin``), from
    ``embedding``, float32 of shape (batch, d), to ``reduced``: the rows of norm 1 that
    :func:`st_dimreduce.reduce_vectors` stores. Batch and length are dynamic. ``export.json`` holds the sizes, and a
    model's prompts, maximum length and files. Before the folder gets its name the graph is run, and what it gives is
    compared with the model or head.

    OpenVINO computes in bfloat16 where the processor can: compile the graph with
    ``{"INFERENCE_PRECISION_HINT": "f32"}`` to get the same vectors.

    Args:
        source: A reduced model that the portable form can hold, or a head; or the name or folder of one.
        path: The folder to make. It appears when it is complete.
        format: ``"onnx"`` (the default) or ``"openvino"``.
        precision: Precision of the codes; no codes if ``"float32"``. Defaults to what the head was fitted for.
        variants: Smaller ONNX files of a model to write as well: ``"fp16"`` for ``onnx/model_fp16.onnx``, ``"int8"``
            for ``onnx/model_quantized.onnx``, which transformers.js takes in a browser. ``export.json`` has the mean
            and least cosine of each to the model. Defaults to none.
        overwrite: Replace an export that is there. Defaults to False.

    Returns:
        The file of the graph.

    Raises:
        FileExistsError: If ``path`` exists and ``overwrite`` is False, or holds no export.
        ModuleNotFoundError: If the extra of the format is not installed.
        OSError: If the disk is full, or refuses otherwise.
        ValueError: If there is no model or head, it holds something that such a graph cannot hold, it has over
            500 million weights, or variants are asked for of a head or of OpenVINO.
    """
    format, target = Format(format), check_target(path, overwrite, SETTINGS)  # noqa: A001
    wanted = [Variant(variant) for variant in ([variants] if isinstance(variants, str) else variants)]
    missing = [name for name in _NEEDED[format] if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"{', '.join(missing)} is missing: pip install 'st_dimreduce[{format.value}]'")
    with progress_bar("Exporting", "steps", total=3) as bar:
        opened = _open(source)
        if wanted and (isinstance(opened, BaseHead) or format is not Format.ONNX):
            given = "a head" if isinstance(opened, BaseHead) else format.value
            raise UserError(f"variants of {given} were asked for: expected a model and the format onnx")
        bar.update()
        with new_folder(target, overwrite, SETTINGS) as folder:
            job = _Job(folder, target, format, None if precision is None else Precision(precision), wanted, bar.update)
            written = _write_head(opened, job) if isinstance(opened, BaseHead) else _write_model(opened, job)
        bar.update()
    return target / written


@dataclass(frozen=True)
class _Job:
    """What to write, and where.

    Attributes:
        folder: The folder to write to.
        target: What it will be called.
        format: File format of the graph.
        precision: Precision of the codes; that of the head if None.
        variants: Smaller files to write as well.
        step: Called when the graph has been traced.
    """

    folder: Path
    target: Path
    format: Format
    precision: Precision | None
    variants: list[Variant]
    step: Callable[[], object]


def _write_head(head: BaseHead, job: _Job) -> str:
    """Write a head's graph and settings; returns the file of the graph."""
    precision = job.precision or head.precision
    graph = head_graph(head, precision)
    job.step()
    name = _save(graph, "head", job)
    rows = np.random.default_rng(0).standard_normal((64, head.in_features), np.float32)
    found = _run(job.folder / name, {"embedding": rows})
    compare_vectors(head.transform(rows), found["reduced"], "in a runtime")
    _check_codes(found, found["reduced"], precision)
    write_json(job.folder / SETTINGS, {"in_features": head.in_features, **_said(graph, precision)})
    return name


def _write_model(model: SentenceTransformer, job: _Job) -> str:
    """Write a model's graph, its variants, tokenizer and settings; returns the file of the graph."""
    if problems := unexportable(model):
        raise UserError(f"this model cannot be exported: {'; '.join(problems)}")
    precision = job.precision or head_of(model)[1].precision
    tokenizer, embed = _tokenizer(model[0]), EmbedTokens(model)
    texts = [*TEXTS, special_words(model)]
    feeds, expected = _feeds(model, tokenizer, texts), encode_as_it_was(model, texts)
    if reason := _left_out(embed, feeds, expected):
        embed.pooling = None
        warnings.warn(f"the graph has no last_hidden_state: {reason}; take its sentence_embedding", stacklevel=3)
    graph = model_graph(embed, precision)
    job.step()
    (job.folder / job.format.value).mkdir()
    name = _save(graph, _NAMES[job.format], job)
    found = _run(job.folder / name, feeds)
    for said, vectors in _by_every_route(found, feeds, embed):
        compare_vectors(expected, vectors, f"in a runtime, {said}")
    _check_codes(found, found["sentence_embedding"], precision)
    files = {name: _measured(job.folder / name, found, expected)}
    for variant in job.variants:
        smaller = f"onnx/{_VARIANTS[variant]}.onnx"
        write_variant(graph, job.folder / smaller, variant)
        files[smaller] = _measured(job.folder / smaller, _run(job.folder / smaller, feeds), expected)
    write_settings(model, job.folder, expected.shape[1], embed.pooling)
    tokenizer.save(str(job.folder / TOKENIZER))
    settings = {
        "max_seq_length": (tokenizer.truncation or {}).get("max_length"),
        "prompts": {name: prompt or "" for name, prompt in model.prompts.items()},
        "default_prompt_name": model.default_prompt_name,
        "similarity_fn_name": model.similarity_fn_name,
        "pooling": embed.pooling,
        "files": files,
    }
    write_json(job.folder / SETTINGS, settings | _said(graph, precision))
    return name


def _said(graph: ModelProto, precision: Precision) -> dict[str, Any]:
    """Return what the settings say of a graph's outputs."""
    embeddings = [output for output in graph.graph.output if output.name in {"sentence_embedding", "reduced"}]
    return {
        "dimensions": embeddings[0].type.tensor_type.shape.dim[1].dim_value,
        "precision": precision.value,
        "outputs": [output.name for output in graph.graph.output],
    }


def _save(graph: ModelProto, name: str, job: _Job) -> str:
    """Write a graph; returns its file, relative to the folder."""
    import onnx  # noqa: PLC0415, optional

    onnx.checker.check_model(graph)
    onnx.save(graph, job.folder / f"{name}.onnx")
    if job.format is Format.OPENVINO:
        _to_openvino(job.folder / f"{name}.onnx", job.target)
    return f"{name}.{_SUFFIXES[job.format]}"


def _feeds(model: SentenceTransformer, tokenizer: Tokenizer, texts: list[str]) -> dict[str, np.ndarray]:
    """Return a graph's inputs for texts: what the exported tokenizer makes of them."""
    prompt = model.prompts.get(model.default_prompt_name or "") or ""
    read = tokenizer.encode_batch([prompt + text for text in texts])
    fields = {"input_ids": [row.ids for row in read], "attention_mask": [row.attention_mask for row in read]}
    return {name: np.array(rows, np.int64) for name, rows in fields.items()}


def _left_out(embed: EmbedTokens, feeds: dict[str, np.ndarray], expected: np.ndarray) -> str | None:
    """Say why a reader that pools the tokens by itself would get other vectors; None if it would not."""
    if embed.pooling is None:
        return "readers pool by mean, cls or lasttoken, this model in another way"
    with torch.no_grad():
        outputs = embed(*(torch.from_numpy(values) for values in feeds.values()))
    found = dict(zip(embed.outputs, (output.numpy() for output in outputs), strict=True))
    *_, (said, vectors) = _by_every_route(found, feeds, embed)
    with suppress(ValueError):
        compare_vectors(expected, vectors, said)
        return None
    return "what a reader pools of it would be other vectors, as where the Tanh of a head is not linear"


def _by_every_route(
    outputs: dict[str, np.ndarray], feeds: dict[str, np.ndarray], embed: EmbedTokens
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the embeddings by each way that a reader may take from a graph's outputs, and a word for it.

    What a reader pools gets the norms of the model's own, which its Tanh changes a little.
    """
    yield "taken ready-made", outputs["sentence_embedding"]
    if embed.pooling is None:
        return
    tokens, mask = outputs["last_hidden_state"].astype(np.float64), feeds["attention_mask"][:, :, None]
    if embed.pooling == "mean":
        vectors = (tokens * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)
    else:
        lengths, first = mask[:, :, 0].sum(axis=1), mask[:, :, 0].argmax(axis=1)
        place = first if embed.pooling == "cls" else np.maximum(first + lengths - 1, 0)
        vectors = tokens[np.arange(len(tokens)), place]
    norms = [np.linalg.norm(each, axis=1, keepdims=True) for each in (outputs["sentence_embedding"], vectors)]
    yield f"pooled by a reader ({embed.pooling})", vectors * norms[0] / np.maximum(norms[1], 1e-30)


def _measured(path: Path, outputs: dict[str, np.ndarray], expected: np.ndarray) -> dict[str, Any]:
    """Return the size of a graph's files, and how the vectors that it gives differ from the model's."""
    found = outputs["sentence_embedding"].astype(np.float64)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = ((found * expected).sum(axis=1) / np.maximum(norms, 1e-30))[norms > 0]
    size = sum(part.stat().st_size for part in files_of(path))
    mean, least = float(cosines.mean()), float(cosines.min())
    return {"bytes": size, "mean_cosine": round(mean, 6), "least_cosine": round(least, 6)}


def _check_codes(outputs: dict[str, np.ndarray], embeddings: np.ndarray, precision: Precision) -> None:
    """Compare the codes that a graph gives, if any, with those of :func:`st_dimreduce.quantize`.

    Raises:
        ValueError: If more than a few differ.
    """
    if "codes" not in outputs:
        return
    codes, wanted = outputs["codes"], quantize(embeddings, precision)
    differing = np.mean(wanted != codes)
    if codes.dtype != wanted.dtype or differing > _MOST_CODES:
        raise UserError(f"{differing:.1%} of the codes that the graph gives are not those of quantize: {KEPT}")


def _run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the outputs of a graph by name, from the runtime that it is for."""
    if path.suffix == ".onnx":
        import onnxruntime  # noqa: PLC0415, optional

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return dict(zip((output.name for output in session.get_outputs()), session.run(None, feeds), strict=True))
    with _without_telemetry():
        import openvino  # noqa: PLC0415, optional
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(feeds)
    return {output.any_name: found[output] for output in compiled.outputs}


def _open(source: SentenceTransformer | BaseHead | str | os.PathLike[str]) -> SentenceTransformer | BaseHead:
    if isinstance(source, (str, os.PathLike)):
        folder = Path(source)
        is_head = folder.is_dir() and not (folder / "modules.json").exists()
        return load_head(folder) if is_head else load_model(source)
    if isinstance(source, SentenceTransformer):
        return source
    if not hasattr(source, "to_head"):
        raise no_model(source)
    return source.to_head()


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
        raise UserError(
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
