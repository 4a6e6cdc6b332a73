"""Reducing late-interaction models: a head on every token vector, multiplied into the layer that gives them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers.sentence_transformer.modules import Normalize, Transformer
from torch import nn

from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.rows import as_count
from st_dimreduce.enums import Objective
from st_dimreduce.errors import UserError
from st_dimreduce.fitting.budget import DEFAULT_OUT_FEATURES, Size
from st_dimreduce.fitting.fit import fit_head
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.models.attach import origin
from st_dimreduce.progress import progress_bar
from st_dimreduce.record import FitRecord, set_record
from st_dimreduce.texts import check_texts

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

_TOKENS = "token_embeddings"
_CHUNK = 256  # texts whose token vectors are held at a time
_UNIT = 0.01  # by which a norm may differ from 1, as those of models in bfloat16 do
_LINEAR = 0.1  # gain up to which a Tanh changes no cosine by more than rounding does


def reduce_multi_vector(
    model: MultiVectorEncoder,
    sentences: Iterable[str] | None = None,
    out_features: int | None = None,
    *,
    bytes_per_token: int | None = None,
    objective: Objective | str = Objective.FIDELITY,
    head: BaseHead | None = None,
    seed: int = 0,
    batch_size: int = 32,
) -> MultiVectorEncoder:
    """Reduce every token vector of a late-interaction model, such as ColBERT.

    The head is fitted on the token vectors of the documents. It is linear: the vectors are normalised behind it, so
    that a Tanh of the default gain would change next to nothing, and a linear head is multiplied into the ``Dense``
    that gives the token vectors. Then the reduced model has the same modules as before, and whatever reads the one
    reads the other. A model without such a layer gets one.

    Args:
        model: The base model, which is left unchanged. Its token vectors have norm 1, as by ``Normalize``.
        sentences: Texts to fit on, like the documents that it will encode.
        out_features: Size k of the reduced token vectors. Defaults to 128, where no other size is given.
        bytes_per_token: Bytes per stored token vector, in place of ``out_features``: takes the dimension and the
            precision, ``token_record(model).precision``, that find most nearest token vectors held out from the fit.
        objective: ``"fidelity"``, to keep the cosines of tokens, or ``"quality"``, which leaves out what all of them
            share and whitens the rest a little; on the token vectors of a model that was not trained for late
            interaction it found as much or more. Defaults to ``"fidelity"``.
        head: A head fitted on stored token vectors, in place of ``sentences`` and a size, with which queries are to
            agree: ``fit_head(Summary.of(tokens), 64)``. Its Tanh is left out.
        seed: Seed of the sample and of the fit. Defaults to 0.
        batch_size: Texts the base model encodes at a time. Defaults to 32.

    Returns:
        A new ``MultiVectorEncoder`` with the base model's prompts, lengths, masks and similarity function. Saved with
        ``save_pretrained``, it loads without this package.

    Raises:
        ValueError: If ``model`` is no ``MultiVectorEncoder``, its token vectors are not of norm 1 or fewer than the
            size asks for, there is nothing to fit on, or the head does not fit the model.
    """
    _check_model(model)
    if (sentences is None) == (head is None):
        said = "both" if head is not None else "neither"
        raise UserError(f"{said} of sentences and head were given: give texts to fit on, or a head that was fitted")
    options: dict[str, Any] = {"batch_size": batch_size}
    if head is not None:
        if out_features is not None or bytes_per_token is not None:
            raise UserError("a size was given with a head, which has one: drop the size")
        return _attached(model, _linear(head, _width(model)))
    if out_features is not None and bytes_per_token is not None:
        raise UserError("out_features and bytes_per_token were given: give exactly one of them")
    size = _size(out_features, bytes_per_token, _width(model))
    summary = _summarize(model, sentences or (), seed, **options)
    fitted = fit_head(summary, size, objective=objective, seed=seed)
    return _attached(model, _linear(fitted, summary.width))


def token_record(model: MultiVectorEncoder) -> FitRecord:
    """Return how the head of a reduced late-interaction model was fitted, and the precision to store its tokens in.

    Raises:
        ValueError: If the model was not reduced by :func:`st_dimreduce.reduce_multi_vector`.
    """
    config = model[0].auto_model.config if isinstance(model[0], Transformer) else None
    content = getattr(config, "st_dimreduce", None)
    if not isinstance(content, Mapping):
        raise UserError("the model has no fit record: expected one that reduce_multi_vector gave")
    return FitRecord.from_dict(content)


def _check_model(model: Any) -> None:
    try:
        from sentence_transformers import MultiVectorEncoder  # noqa: PLC0415, which older versions lack
    except ImportError as error:
        installed = version("sentence-transformers")
        raise UserError(f"Sentence Transformers {installed} has no MultiVectorEncoder: install a newer one") from error
    if not isinstance(model, MultiVectorEncoder):
        kind = type(model).__name__
        raise UserError(
            f"the model is of type {kind}: expected a MultiVectorEncoder that was loaded; reduce_model reduces others"
        )


def _size(out_features: int | None, bytes_per_token: int | None, width: int) -> Size:
    if bytes_per_token is not None:
        return Size(bytes_per_vector=as_count(bytes_per_token, "bytes_per_token", "choose a budget of at least 1"))
    size = DEFAULT_OUT_FEATURES if out_features is None else out_features
    if not 1 <= size <= width:
        raise UserError(f"out_features={size}: choose a size from 1 to {width}, what the base model gives per token")
    return Size(size)


def _width(model: MultiVectorEncoder) -> int:
    return _tokens(model, ["width"], 1).shape[1]


def _tokens(model: MultiVectorEncoder, texts: list[str], batch_size: int) -> np.ndarray:
    """Return the token vectors of documents, one document after the other."""
    vectors = model.encode_document(texts, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)
    tokens = np.concatenate(vectors)
    norms = np.linalg.norm(tokens, axis=1)
    if len(norms) and not np.abs(norms - 1).max() < _UNIT:
        raise UserError(
            f"the model's token vectors have norms of {norms.min():.3g} to {norms.max():.3g}: expected norm 1, add "
            f"Normalize(module_input_name={_TOKENS!r}) at its end if they are to be scored by their cosines"
        )
    return tokens


def _summarize(model: MultiVectorEncoder, sentences: Iterable[str], seed: int, batch_size: int) -> Summary:
    """Return a summary of the token vectors of documents, of which a few are held at a time."""
    check_texts("sentences", sentences)
    summary: Summary | None = None
    total = len(sentences) if isinstance(sentences, Sized) else None
    with progress_bar("Encoding", "texts", total=total) as bar:
        for chunk in _chunks(sentences):
            tokens = _tokens(model, chunk, batch_size)
            summary = (summary or Summary(tokens.shape[1], seed=seed)).update(tokens)
            bar.update(len(chunk))
    if summary is None:
        raise UserError("there is no sentence to fit on: give texts like the documents that it will encode")
    return summary


def _chunks(sentences: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(sentences)
    while chunk := list(islice(texts, _CHUNK)):
        yield chunk


def _linear(head: BaseHead, width: int) -> BaseHead:
    """Return the head without its Tanh and for token vectors of any norm, as they are before ``Normalize``."""
    if head.in_features != width:
        raise UserError(
            f"the head takes {head.in_features} dimensions, the model gives {width} per token: take the model that the "
            "vectors came from"
        )
    if head.bias is not None or (head.activation == "Tanh" and not (head.record.gain or np.inf) <= _LINEAR):
        raise UserError(
            f"the head has a bias, or no gain of at most {_LINEAR} in its record: expected one that fit_head gave, "
            "which is linear but for rounding"
        )
    return replace(head, activation="Identity")


def _attached(base: MultiVectorEncoder, head: BaseHead) -> MultiVectorEncoder:
    """Return the base model with a linear head on its token vectors."""
    from sentence_transformers import MultiVectorEncoder  # noqa: PLC0415, as in _check_model

    head = head.with_record(**origin(base))  # type: ignore[arg-type]  # reads its card only
    arguments = base.module_kwargs or {}
    modules = [(copy.deepcopy(module), arguments.get(name, [])) for name, module in base.named_children()]
    place = len(modules)
    while place and _keeps_directions(modules[place - 1][0]):
        place -= 1
    below = modules[place - 1][0]
    dense = head.to_dense()
    dense.module_input_name = dense.module_output_name = _TOKENS
    dense.to(next((each for each in below.parameters() if each.is_floating_point()), dense.linear.weight))
    normalises = any(getattr(module, "module_input_name", None) == _TOKENS for module, _ in modules[place:])
    added: list[nn.Module] = [dense] if normalises else [dense, Normalize(module_input_name=_TOKENS)]
    modules[place:place] = [(module, []) for module in added]
    reduced = MultiVectorEncoder(
        modules=[module for module, _ in modules],
        device=str(base.device),
        prompts={name: prompt or "" for name, prompt in base.prompts.items()},
        default_prompt_name=base.default_prompt_name,
        similarity_fn_name=base.similarity_fn_name,
    )
    reduced.module_kwargs = {f"{place}": names for place, (_, names) in enumerate(modules) if names}
    reduced.model_card_data.base_model = head.record.base_model
    set_record(reduced, dense, head.record)  # type: ignore[arg-type]  # reads its first module only
    return reduced


def _keeps_directions(module: nn.Module) -> bool:
    """Whether a head may as well stand before a module: it scales, masks or averages token vectors."""
    from sentence_transformers.multi_vector_encoder.modules import (  # noqa: PLC0415, as in _check_model
        BaseTokenPooling,
        MultiVectorMask,
    )

    return isinstance(module, (Normalize, MultiVectorMask, BaseTokenPooling))
