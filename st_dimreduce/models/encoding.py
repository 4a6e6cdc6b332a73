"""Encoding of texts by several models at once: modules that they share encode each text once.

A reduced model is its base model and a matrix. Nearly all of the time goes to the modules that both have, the
transformer above all. So these encode the texts, and the few modules behind them are applied to the result.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from st_dimreduce.models.cache import Cache

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn
    from tqdm import tqdm

Role = Literal["document", "query", "plain"]  # the last without a prompt

CHUNK = 2048  # texts encoded at a time: enough to sort by length, few enough to hold their vectors
_PROMPTS: dict[Role, tuple[str, ...]] = {"document": ("document", "passage", "corpus"), "query": ("query",)}
_EMBEDDING = "sentence_embedding"
# Modules that read a sentence embedding and nothing else, and cost next to nothing.
_LIGHT = {"Dense", "DimReduce", "Normalize", "LayerNorm", "Dropout"}
# Modules whose output depends on their tensors and on the settings that _digest reads, and on nothing else.
_KNOWN = {"Transformer", "Pooling", "StaticEmbedding"} | _LIGHT
_PACKAGES = {"sentence_transformers", "st_dimreduce"}
_TOKENIZER: tuple[str, ...] = (
    "model_max_length",
    "truncation_side",
    "padding_side",
    "model_input_names",
    "chat_template",
)
_TOKENIZER += ("split_special_tokens", "pad_token")
# Of a transformer's config: what changes no embedding. The last is the record of a reduced model's head.
_IDLE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "st_dimreduce")


class SharedEncoder:
    """Encodes texts with several models, with the modules that they share only once.

    Two models share what precedes the ``Dense``, ``Normalize`` and the like at their ends if :func:`body_digest` is
    the same there, and so is the prompt; it is in memory once, unless the caller holds the others. A model with modules
    that cannot be identified encodes by itself, uncached.

    Args:
        models: The models by name; ``""`` stands for the base model.
        batch_size: Texts encoded at a time. Defaults to 32.
        cache: Where embeddings are stored, those of the shared modules. Defaults to None.

    Attributes:
        seconds: For each model the seconds that its embeddings took, with the shared part in full.

    Warns:
        UserWarning: If a cache is given and a model has modules that cannot be identified.
    """

    def __init__(
        self, models: Mapping[str, SentenceTransformer], batch_size: int = 32, cache: Cache | None = None
    ) -> None:
        single = cache is None and len({id(model) for model in models.values()}) == 1  # nothing to identify
        bodies: dict[Any, list[nn.Module]] = {}
        self._models = {name: _split(model, bodies, identify=not single) for name, model in models.items()}
        self._options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False}
        self._cache = cache
        self.seconds = dict.fromkeys(models, 0.0)
        unknown = [name or "the base model" for name, split in self._models.items() if not split.is_known]
        if cache is not None and unknown:
            why = "it has modules whose settings cannot be read"
            warnings.warn(f"nothing that {', '.join(unknown)} encodes is cached: {why}", stacklevel=2)

    def encode(
        self, texts: Sequence[str], role: Role, bar: tqdm | None = None, names: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Return the embeddings of texts by model.

        Args:
            texts: The texts, n of them.
            role: Whether they are encoded as documents, as queries, or without a prompt.
            bar: A progress bar, which counts each text once per group of models. Defaults to None.
            names: The models to encode with. Defaults to None: all.

        Returns:
            For each model float32 of shape (n, k).
        """
        rows: dict[str, list[np.ndarray]] = {name: [] for name in (self._models if names is None else names)}
        groups = [[name for name in group if name in rows] for group in self.groups(role)]
        for group in filter(None, groups):
            for start in range(0, len(texts), CHUNK):
                chunk, begin = list(texts[start : start + CHUNK]), time.perf_counter()
                below = self._encode_below(self._models[group[0]], chunk, role)
                shared_seconds = time.perf_counter() - begin
                for name in group:
                    begin = time.perf_counter()
                    rows[name].append(self._models[name].finish(below))
                    self.seconds[name] += shared_seconds + time.perf_counter() - begin
                if bar is not None:
                    bar.update(len(chunk))
        return {name: np.concatenate(some) for name, some in rows.items()}

    def _encode_below(self, split: _Split, texts: list[str], role: Role) -> np.ndarray:
        """Return the embeddings below the tail, from the cache where it has them."""
        if self._cache is None or not split.is_known or not all(isinstance(text, str) for text in texts):
            return _encode(split.body, texts, role, self._options)
        key = split.key, prompt_of(split.body, role), role
        return self._cache.get(key, texts, lambda: _encode(split.body, texts, role, self._options))

    def groups(self, *roles: Role) -> list[list[str]]:
        """Return the names of the models in groups, each of which encodes a text of these roles once."""
        groups: dict[Any, list[str]] = {}
        for name, split in self._models.items():
            groups.setdefault((split.key, *(prompt_of(split.body, role) for role in roles)), []).append(name)
        return list(groups.values())

    def summary(self) -> str:
        """Return one sentence that says which models encode the texts, and why."""
        (first, *sharing), *others = [[name or "the base model" for name in names] for names in self.groups(*_PROMPTS)]
        lines = [f"Encoded by {first}"]
        if sharing:
            have = "has the same modules below its head" if len(sharing) == 1 else "have the same below their heads"
            lines = [f"Encoded once, by {first}: {' and '.join(sharing)} {have}"]
        known = all(split.is_known for split in self._models.values())
        why = "other modules below the head, or another prompt" if known else "modules that cannot be compared"
        lines += [f"{', '.join(names)} by itself, as it has {why}" for names in others]
        return "; ".join(lines) + "."


@dataclass(frozen=True)
class _Split:
    """A model in two parts.

    Attributes:
        body: The modules that encode, with the model's own prompts.
        tail: The light modules behind them; empty where the modules cannot be identified.
        key: What is equal for models that share the modules that encode.
        is_known: Whether these could be identified.
        truncate_dim: Dimensions to which the model cuts its embeddings; None for all.
    """

    body: SentenceTransformer
    tail: list[nn.Module]
    key: str
    is_known: bool
    truncate_dim: int | None

    def finish(self, rows: np.ndarray) -> np.ndarray:
        """Return what the tail makes of the embeddings below it, (n, d), as float32 of shape (n, k)."""
        import torch  # noqa: PLC0415, takes seconds to import

        weight = next((parameter for module in self.tail for parameter in module.parameters()), None)
        with torch.inference_mode():
            inputs = torch.from_numpy(rows).to(self.body.device, torch.float32 if weight is None else weight.dtype)
            features: Any = {_EMBEDDING: inputs}
            for module in self.tail:
                features = module.eval()(features)
            return features[_EMBEDDING].float().cpu().numpy()[:, : self.truncate_dim]


def _split(model: SentenceTransformer, bodies: dict[Any, list[nn.Module]], *, identify: bool) -> _Split:
    """Split a model; where another one has the same modules that encode, take these.

    Args:
        model: The model.
        bodies: For each key the modules that encode of the models so far; a new one is added.
        identify: Whether to find out if modules are the same, for which all weights are read.
    """
    modules = list(model)
    end = len(modules)
    while end > 1 and _is_light(modules[end - 1]):
        end -= 1
    digest = body_digest(model, modules[:end]) if identify else None
    if digest is None:
        return _Split(model, [], str(id(model)), False, model.truncate_dim)
    body = assemble(model, bodies.setdefault(digest, modules[:end]))
    return _Split(body, modules[end:], digest, True, model.truncate_dim)


def _encode(model: SentenceTransformer, texts: list[str], role: Role, options: Mapping[str, Any]) -> np.ndarray:
    if role == "document":
        return model.encode_document(texts, **options)
    return model.encode_query(texts, **options) if role == "query" else model.encode(texts, prompt="", **options)


def prompt_of(model: SentenceTransformer, role: Role) -> str:
    """Return what a model puts before each text."""
    if role == "plain":
        return ""
    name = next((name for name in _PROMPTS[role] if name in model.prompts), model.default_prompt_name)
    return (model.prompts.get(name) if name is not None else None) or ""


def assemble(base: SentenceTransformer, modules: Any) -> SentenceTransformer:
    """Return a model of these modules that treats texts and scores as the base model does."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415, takes seconds to import

    model = SentenceTransformer(
        modules=modules,
        device=str(base.device),
        prompts={name: prompt or "" for name, prompt in base.prompts.items()},
        default_prompt_name=base.default_prompt_name,
        similarity_fn_name=base.similarity_fn_name,
    )
    model.module_kwargs = base.module_kwargs
    return model


def body_digest(model: SentenceTransformer, modules: Sequence[nn.Module] | None = None) -> str | None:
    """Return a digest of everything that embeddings depend on, besides texts and prompt.

    That is the class, tensors (with their dtype) and settings of each module, and of its tokenizer: its rules and
    vocabulary, maximum length, and the side on which it truncates.

    Args:
        model: The model.
        modules: Some of its modules, from the first on. Defaults to None: all.

    Returns:
        SHA-256 in hexadecimal digits. None if a module is of a class whose settings this package cannot read: one of
        another package, a subclass, one with an adapter or a graph, or with a slow tokenizer.
    """
    if not _is_of(model, {"SentenceTransformer"}) or any((model.module_kwargs or {}).values()):
        return None
    digests = [_digest(module) for module in (model if modules is None else modules)]
    return None if None in digests else hashlib.sha256("".join(map(str, digests)).encode()).hexdigest()


def _digest(module: Any) -> str | None:
    import torch  # noqa: PLC0415, takes seconds to import

    if not _is_of(module, _KNOWN):
        return None
    settings: dict[str, Any] = {"class": type(module).__name__, "config": module.get_config_dict()}
    tokenizer, inner = getattr(module, "tokenizer", None), getattr(module, "auto_model", None)
    if tokenizer is not None:
        settings["tokenizer"] = _tokenizer_settings(tokenizer)
        if settings["tokenizer"] is None:
            return None
    if inner is not None:
        if module.backend != "torch" or hasattr(inner, "peft_config"):
            return None  # the weights are in a graph, or an adapter scales them
        config = inner.config.to_dict()
        settings["lower case"] = module.do_lower_case
        processor: Any = getattr(module, "processor", tokenizer)
        settings["images and sound"] = None if processor is tokenizer else processor.to_dict()
        settings["transformer"] = type(inner).__name__, inner.config._attn_implementation
        settings["transformer config"] = {key: config[key] for key in config if key not in _IDLE}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tokenizer_settings(tokenizer: Any) -> list[Any] | None:
    """Return what a fast tokenizer does, besides what each call of Transformers sets anew; None for a slow one."""
    rules = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(rules, "to_str"):
        return None
    content: dict[str, Any] = json.loads(rules.to_str())
    if rules is not tokenizer:  # one of Transformers, which pads and truncates as its own attributes say
        content |= {"padding": None, "truncation": None}
    return [type(tokenizer).__name__, content, {name: getattr(tokenizer, name, None) for name in _TOKENIZER}]


def _is_light(module: nn.Module) -> bool:
    ends = (getattr(module, name, _EMBEDDING) for name in ("module_input_name", "module_output_name"))
    return _is_of(module, _LIGHT) and all(end in (None, _EMBEDDING) for end in ends)


def _is_of(module: nn.Module, names: Collection[str]) -> bool:
    kind = type(module)
    return kind.__name__ in names and kind.__module__.partition(".")[0] in _PACKAGES
