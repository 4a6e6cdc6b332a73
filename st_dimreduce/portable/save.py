"""The portable form: a reduced model in the file layout that every consumer reads.

Sentence Transformers before 6, and Text Embeddings Inference to this day, know modules by their old names
(``sentence_transformers.models.*``) and Pooling by boolean keys. Sentence Transformers 6 reads that layout too, so
it is the one to ship.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    StaticEmbedding,
    Transformer,
)
from torch import nn

from st_dimreduce.files import new_folder
from st_dimreduce.portable.card import model_card
from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.portable.transformers4 import speak_older

RECORD = "st_dimreduce.json"
_NO_LIMIT = 10**9  # tokenizers without a maximum length report a huge one
ACTIVATIONS: dict[type, str] = {
    nn.Tanh: "torch.nn.modules.activation.Tanh",
    nn.Identity: "torch.nn.modules.linear.Identity",
}
POOLING_KEYS = {  # in the order in which readers join several
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def save_portable(
    model: SentenceTransformer,
    path: str | os.PathLike[str],
    *,
    figures: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Save a reduced model so that ``SentenceTransformer(path)`` loads it anywhere, without this package or any flag.

    Modules keep their order; a ``DimReduce`` is written as the stock ``Dense`` that it is at inference. Weights go to
    safetensors. Prompts, similarity function and maximum length are kept. ``st_dimreduce.json`` says how the head was
    fitted. The folder appears when it is complete.

    Args:
        model: Transformer, Pooling, one or more heads, then Normalize or nothing; or StaticEmbedding in place of
            the first two.
        path: The folder to make.
        figures: What was measured of the model, to be kept in ``st_dimreduce.json``. Defaults to None.
        overwrite: Replace a model folder that is already there. Defaults to False.

    Raises:
        ValueError: If the layout has no words for something in the model; says what it is. Nothing is written.
        FileExistsError: If ``path`` exists and ``overwrite`` is False, or is no model folder.
    """
    modules = list(model)
    problems = unportable(modules)
    if problems:
        raise ValueError(f"the portable form cannot express this model: {'; '.join(problems)}")
    with new_folder(path, overwrite) as folder:
        entries = []
        for index, module in enumerate(modules):
            kind = next(kind for kind in _WRITERS if isinstance(module, kind))
            relative = (
                "" if kind is Transformer else f"{index}_{kind.__name__}"
            )  # before 5, "" is a Transformer's alone
            if kind is not Normalize:  # it has no settings, and the Hub keeps no empty folder
                (folder / relative).mkdir(exist_ok=True)
                _WRITERS[kind](module, folder / relative)
            class_name = f"sentence_transformers.models.{kind.__name__}"
            entries.append({"idx": index, "name": str(index), "path": relative, "type": class_name})
        write_json(folder / "modules.json", entries)
        write_json(folder / "config_sentence_transformers.json", _model_config(model))
        record = fit_record(DimReduce.from_model(model), figures)
        write_json(folder / RECORD, record)
        (folder / "README.md").write_text(model_card(record), encoding="utf-8")


def unportable(modules: list[nn.Module]) -> list[str]:
    """Name everything in a sequence of modules that the portable layout cannot express, and what to do about it."""
    if isinstance(modules[0], StaticEmbedding):
        problems, rest = [], modules[1:]
    elif len(modules) > 1 and isinstance(modules[0], Transformer) and isinstance(modules[1], Pooling):
        problems, rest = _body_problems(modules[0], modules[1]), modules[2:]
    else:
        names = [type(module).__name__ for module in modules[:2]]
        return [f"it starts with {names}, expected Transformer then Pooling: keep the head behind Pooling"]
    heads = rest[:-1] if rest and isinstance(rest[-1], Normalize) else rest
    if not heads:
        problems.append("there is no head (DimReduce or Dense) behind Pooling: fit one with reduce_model")
    return problems + [problem for head in heads for problem in _head_problems(head)]


def _body_problems(transformer: Transformer, pooling: Pooling) -> list[str]:
    problems = []
    if transformer.backend != "torch":
        problems.append(f"its Transformer runs on {transformer.backend}: load the base model with backend='torch'")
    if "text" not in transformer.modality_config or set(transformer.modality_config) - {"text", "message"}:
        problems.append("its Transformer reads more than text: use save_pretrained")
    if not in_order(pooling.pooling_mode):
        order = ", ".join(POOLING_KEYS)
        problems.append(f"its Pooling joins {pooling.pooling_mode}, readers join in the order {order}: use that one")
    return problems


def in_order(modes: str | Sequence[str]) -> bool:
    """Whether boolean keys, which have no order, say these modes of pooling."""
    return isinstance(modes, str) or list(modes) == [mode for mode in POOLING_KEYS if mode in modes]


def _head_problems(module: nn.Module) -> list[str]:
    name = type(module).__name__
    if not isinstance(module, Dense):
        return [f"{name} stands behind Pooling, where only Dense, DimReduce and a last Normalize may: leave it out"]
    problems = []
    if {module.module_input_name, module.module_output_name} != {"sentence_embedding"}:
        words = f"reads {module.module_input_name!r} and writes {module.module_output_name!r}"
        problems.append(f"{name} {words}, expected 'sentence_embedding' for both: put it behind Pooling")
    if type(module.activation_function) not in ACTIVATIONS:
        activation = type(module.activation_function).__name__
        problems.append(f"{name} ends in {activation}, expected Tanh or Identity: train it with one of these")
    if module.use_residual:
        problems.append(f"{name} has a residual connection, which older readers ignore: train it without")
    return problems


def _write_transformer(module: Transformer, folder: Path) -> None:
    module.save(str(folder))
    speak_older(folder)
    length = module.max_seq_length
    config = {
        "max_seq_length": length if length and length < _NO_LIMIT else None,
        "do_lower_case": module.do_lower_case,
    }
    write_json(folder / "sentence_bert_config.json", config)


def _write_pooling(module: Pooling, folder: Path) -> None:
    modes = (module.pooling_mode,) if isinstance(module.pooling_mode, str) else module.pooling_mode
    config = {
        "word_embedding_dimension": module.embedding_dimension,
        **{key: mode in modes for mode, key in POOLING_KEYS.items()},
        "include_prompt": module.include_prompt,
    }
    write_json(folder / "config.json", config)


def _write_dense(module: Dense, folder: Path) -> None:
    config = {
        "in_features": module.in_features,
        "out_features": module.out_features,
        "bias": module.bias,
        "activation_function": ACTIVATIONS[type(module.activation_function)],
    }
    write_json(folder / "config.json", config)
    module.save_torch_weights(str(folder))


_WRITERS: dict[type[nn.Module], Callable[[Any, Path], None]] = {
    Transformer: _write_transformer,
    Pooling: _write_pooling,
    Dense: _write_dense,
    StaticEmbedding: lambda module, folder: module.save(str(folder)),
    Normalize: lambda module, folder: None,
}


def _model_config(model: SentenceTransformer) -> dict[str, Any]:
    """Without ``__version__``, which older versions would compare with their own and warn about."""
    config = {
        "prompts": {name: prompt or "" for name, prompt in model.prompts.items()},
        "default_prompt_name": model.default_prompt_name,
        "similarity_fn_name": model.similarity_fn_name,
    }
    return config | ({"truncate_dim": model.truncate_dim} if model.truncate_dim is not None else {})


def fit_record(head: DimReduce, figures: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what ``st_dimreduce.json`` says of a head: sizes, how it was fitted, versions and what was measured."""
    packages = ("st_dimreduce", "sentence-transformers", "transformers", "torch")
    return {
        "in_features": head.in_features,
        "out_features": head.out_features,
        **head.fitted,
        "versions": {name: version(name) for name in packages},
        **({"figures": figures} if figures else {}),
    }


def write_json(path: Path, content: Any) -> None:
    """Write what JSON can hold as people can read it."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
