"""Export of a reduced model as one graph for ONNX Runtime."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer
from torch import nn

from st_dimreduce.codes.metrics import cosines
from st_dimreduce.codes.precision import quantize
from st_dimreduce.dim_reduce import head_of, plain_head
from st_dimreduce.enums import Precision, Variant
from st_dimreduce.errors import MissingExtraError, UserError
from st_dimreduce.files import check_target, new_folder, write_json
from st_dimreduce.models.load import load_model, no_model
from st_dimreduce.portable.graph import EmbedTokens, model_graph, write_variant
from st_dimreduce.portable.graphs import EXPORT, files_of
from st_dimreduce.portable.layout import GRAPHS, TOKENIZER
from st_dimreduce.portable.save import write_settings
from st_dimreduce.portable.verify import KEPT, TEXTS, compare_vectors, encode_as_it_was, special_words
from st_dimreduce.progress import progress_bar

SETTINGS = EXPORT
MOST_WEIGHTS = 500_000_000  # 2 GB of float32: what one ONNX file holds
_NO_LIMIT = 10**9  # tokenizers without a maximum length report a huge one
_MOST_CODES = 0.01  # share of the codes whose entries may be on the edge between two
_NEEDED = ("onnx", "onnxruntime", "onnxscript")


def export(
    model: SentenceTransformer | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    precision: Precision | str | None = None,
    variants: Sequence[Variant | str] = (Variant.FP32,),
    overwrite: bool = False,
) -> Path:
    """Write a reduced model as an ONNX graph, which needs neither torch nor this package to run.

    The graph is ``onnx/model.onnx`` in a folder that readers of such graphs know. From ``input_ids`` and
    ``attention_mask``, int64 of shape (batch, length), with token types of zero, it computes:

    - ``last_hidden_state``, float32 of shape (batch, length, k): reduced embeddings of the tokens, for readers that
      pool by themselves, with the model's own pooling. It is left out, and a warning says why, where that would give
      other vectors: a pooling other than mean, cls or lasttoken, or a head whose Tanh is not linear.
    - ``sentence_embedding``, float32 of shape (batch, k): what ``encode`` returns.
    - ``codes``, with a precision: the bytes of :class:`st_dimreduce.Codes`, except for entries on the very edge between
      two codes.

    Beside it are the files of the tokenizer, of which ``tokenizer.json`` alone makes the inputs, truncated and padded;
    ``config.json``; and, where tokens are an output, ``modules.json`` and ``1_Pooling`` for readers that take the graph
    for the transformer: the head is in it. Batch and length are dynamic. ``export.json`` holds the sizes, prompts,
    maximum length and files. Before the folder gets its name the graph is run, and compared with the model.

    Args:
        model: A reduced model that the portable form can hold; or its name or folder.
        path: The folder to make. It appears when it is complete.
        precision: Precision of the codes; no codes if ``"float32"``. Defaults to None: what the head was fitted for.
        variants: Number formats of the weights, a file each: ``"fp32"`` for ``onnx/model.onnx``, ``"fp16"`` for
            ``onnx/model_fp16.onnx``, ``"int8"`` for ``onnx/model_quantized.onnx``, as transformers.js names them.
            ``export.json`` has the mean and least cosine of each to the model. Defaults to ``"fp32"`` alone.
        overwrite: Replace an export that is there. Defaults to False.

    Returns:
        The file of the first variant.

    Raises:
        FileExistsError: If ``path`` exists and ``overwrite`` is False, or holds no export.
        MissingExtraError: If the extra ``onnx`` is not installed.
        OSError: If the disk is full, or refuses otherwise.
        UserError: If there is no model, it holds something that such a graph cannot hold, or it has over 500 million
            weights.
    """
    target = check_target(path, overwrite, SETTINGS)
    wanted = [Variant(variant) for variant in ([variants] if isinstance(variants, str) else variants)]
    precision = None if precision is None else Precision(precision)
    if not wanted:
        raise UserError("variants is empty: choose from fp32, fp16, int8")
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise MissingExtraError(f"{', '.join(missing)} is missing: pip install 'st_dimreduce[onnx]'")
    with progress_bar("Exporting", "steps", total=3) as bar:
        opened = load_model(model) if isinstance(model, (str, os.PathLike)) else model
        if not isinstance(opened, SentenceTransformer):
            raise no_model(opened)
        bar.update()
        with new_folder(target, overwrite, SETTINGS) as folder:
            _write(opened, folder, precision, wanted, bar.update)
        bar.update()
    return target / GRAPHS[wanted[0]]


def _write(
    model: SentenceTransformer,
    folder: Path,
    precision: Precision | None,
    variants: list[Variant],
    traced: Callable[[], object],
) -> None:
    """Write a model's graphs, tokenizer and settings, having compared what the graphs give."""
    import onnx  # noqa: PLC0415, optional

    head, record = head_of(model)
    plain_head(head, record)  # raises what is wrong with it
    precision = precision or record.precision
    if problems := unexportable(model):
        raise UserError(f"this model cannot be exported: {'; '.join(problems)}")
    tokenizer, embed = _tokenizer(model[0]), EmbedTokens(model)
    texts = [*TEXTS, special_words(model)]
    feeds, expected = _feeds(model, tokenizer, texts), encode_as_it_was(model, texts)
    if reason := _left_out(embed, feeds, expected):
        embed.pooling = None
        warnings.warn(f"the graph has no last_hidden_state: {reason}; take its sentence_embedding", stacklevel=3)
    graph = model_graph(embed, precision)
    traced()
    onnx.checker.check_model(graph)
    whole = folder / GRAPHS[Variant.FP32]
    whole.parent.mkdir()
    onnx.save(graph, whole)
    found = _run(whole, feeds)
    for how, vectors in _by_every_route(found, feeds, embed):
        compare_vectors(expected, vectors, f"in a runtime, {how}")
    _check_codes(found, precision)
    files = {}
    for variant in variants:
        if variant is not Variant.FP32:
            write_variant(graph, folder / GRAPHS[variant], variant)
        outputs = found if variant is Variant.FP32 else _run(folder / GRAPHS[variant], feeds)
        files[GRAPHS[variant]] = _measured(folder / GRAPHS[variant], outputs, expected)
    if Variant.FP32 not in variants:
        whole.unlink()
    write_settings(model, folder, expected.shape[1], embed.pooling)
    tokenizer.save(str(folder / TOKENIZER))
    settings = {
        "max_seq_length": (tokenizer.truncation or {}).get("max_length"),
        "prompts": {name: prompt or "" for name, prompt in model.prompts.items()},
        "default_prompt_name": model.default_prompt_name,
        "similarity_fn_name": model.similarity_fn_name,
        "pooling": embed.pooling,
        "files": files,
        "dimensions": expected.shape[1],
        "precision": precision.value,
        "outputs": [output.name for output in graph.graph.output],
    }
    write_json(folder / SETTINGS, settings)


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
    *_, (how, vectors) = _by_every_route(found, feeds, embed)
    with suppress(ValueError):
        compare_vectors(expected, vectors, how)
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
    found = outputs["sentence_embedding"]
    alike = cosines(found.astype(np.float64), expected)[found.any(axis=1) & expected.any(axis=1)]  # zeros have none
    size = sum(part.stat().st_size for part in files_of(path))
    mean, least = float(alike.mean()), float(alike.min())
    return {"bytes": size, "mean_cosine": round(mean, 6), "least_cosine": round(least, 6)}


def _check_codes(outputs: dict[str, np.ndarray], precision: Precision) -> None:
    """Compare the codes that a graph gives, if any, with those of :func:`st_dimreduce.codes.precision.quantize`.

    Raises:
        UserError: If more than a few differ.
    """
    if "codes" not in outputs:
        return
    codes, wanted = outputs["codes"], quantize(outputs["sentence_embedding"], precision)
    differing = np.mean(wanted != codes)
    if codes.dtype != wanted.dtype or differing > _MOST_CODES:
        raise UserError(f"{differing:.1%} of the codes that the graph gives are not those of the model: {KEPT}")


def _run(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the outputs of a graph by name, from ONNX Runtime."""
    import onnxruntime  # noqa: PLC0415, optional

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip((output.name for output in session.get_outputs()), session.run(None, feeds), strict=True))


def unexportable(model: SentenceTransformer, most_weights: int = MOST_WEIGHTS) -> list[str]:
    """Name everything in a model that one graph cannot hold, and what to do about it."""
    problems = []
    excludes_prompt = any(isinstance(module, Pooling) and not module.include_prompt for module in model)
    if excludes_prompt and any(model.prompts.values()):
        problems.append("its Pooling leaves out the prompt, whose length a graph does not know")
    weights = sum(weight.numel() for weight in model.parameters())
    if weights > most_weights:
        problems.append(f"it has {weights:,} weights, one ONNX file holds {most_weights:,}")
    return problems


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
