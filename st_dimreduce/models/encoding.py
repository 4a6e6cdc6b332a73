"""Encoding of texts by several models at once: the modules that they share encode each text one time.

A reduced model is its base model and a matrix. Most of the time goes to the modules that both have, the transformer
above all, so these encode the texts, and the few modules behind them are applied to what they give.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from st_dimreduce.models.cache import Cache
from st_dimreduce.progress import progress_bar

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn

Role = Literal["document", "query", "plain"]  # the last without a prompt

CHUNK = 2048  # texts encoded at a time: enough to sort by length, few enough to hold their vectors
_PROMPTS: dict[Role, tuple[str, ...]] = {"document": ("document", "passage", "corpus"), "query": ("query",)}
# Modules that read a sentence embedding and nothing else, and cost next to nothing.
_LIGHT = {"Dense", "DimReduce", "Normalize", "LayerNorm", "Dropout"}
_EMBEDDING = "sentence_embedding"
# Modules whose weights and settings say all that an embedding depends on.
_KNOWN = {"Transformer", "Pooling", "StaticEmbedding"} | _LIGHT
_PACKAGES = {"sentence_transformers", "st_dimreduce"}
# Of a transformer's config: what changes no embedding. The last is the record of a reduced model's head.
_IDLE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "st_dimreduce")
_TOKENIZING = ("max_seq_length", "do_lower_case", "processing_kwargs", "query_length", "document_length")


class SharedEncoder:
    """Encodes texts with several models, those that share their lower modules once.

    Two models share what lies below the ``Dense``, ``Normalize`` and the like that they end in, if the classes,
    settings, tokenizers and weights there are equal, and so is the prompt. A module of another package, or one whose
    settings cannot be read, is shared only by a model that has the very same object.

    Args:
        models: The models by name.
        batch_size: Texts encoded at a time. Defaults to 32.
        cache: A folder to keep embeddings in, those below the modules that are not shared. Defaults to None.

    Attributes:
        seconds: For each model the seconds that its embeddings took, with the shared part in full.
    """

    def __init__(
        self,
        models: Mapping[str, SentenceTransformer],
        batch_size: int = 32,
        cache: Cache | None = None,
    ) -> None:
        self._models = dict(models)
        self._options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False}
        self._cache = cache
        one = len({id(model) for model in self._models.values()}) == 1 and cache is None  # nothing to find out
        self._trunks = {name: _Trunk(model, known=not one) for name, model in self._models.items()}
        if cache is not None and (loose := [name for name, trunk in self._trunks.items() if trunk.digest is None]):
            named = f"of {', '.join(loose)} " if any(loose) else ""
            warnings.warn(
                f"nothing {named}is kept in the cache: it has modules that cannot be told from others", stacklevel=2
            )
        self.seconds = dict.fromkeys(self._models, 0.0)

    def encode(self, texts: Sequence[str], role: Role, what: str = "Encoding") -> dict[str, np.ndarray]:
        """Return the embeddings of texts by each model, float32 of shape (n, k).

        Args:
            texts: The texts, n of them.
            role: Whether they are encoded as documents, as queries, or without a prompt.
            what: The label of the progress bar; none if None. Defaults to ``"Encoding"``.
        """
        groups = self.groups(role)
        rows: dict[str, list[np.ndarray]] = {name: [] for name in self._models}
        with progress_bar(what, "texts", total=len(texts) * len(groups)) as bar:
            for names in groups:
                for start in range(0, len(texts), CHUNK):
                    chunk = list(texts[start : start + CHUNK])
                    for name, some in self._chunk(names, chunk, role).items():
                        rows[name].append(some)
                    bar.update(len(chunk))
        return {name: np.concatenate(some) for name, some in rows.items()}

    def of(self, names: Collection[str]) -> SharedEncoder:
        """Return an encoder of some of the models that keeps nothing in a cache, and counts its own seconds."""
        some = copy.copy(self)
        some._models = {name: model for name, model in self._models.items() if name in names}
        some._trunks = {name: self._trunks[name] for name in some._models}
        some._cache, some.seconds = None, dict.fromkeys(some._models, 0.0)
        return some

    def share_modules(self) -> None:
        """Put the modules of one model into those that share them, so that these weights are in memory once."""
        for first, *others in self.groups():
            for other in others:
                self._trunks[other].take(self._trunks[first])

    def groups(self, *roles: Role) -> list[list[str]]:
        """Return the names of the models in groups, each of which encodes a text of these roles once."""
        groups: dict[Any, list[str]] = {}
        for name, trunk in self._trunks.items():
            prompts = [prompt_of(self._models[name], role) for role in roles]
            groups.setdefault((trunk.key, *prompts), []).append(name)
        return list(groups.values())

    def _chunk(self, names: Sequence[str], texts: list[str], role: Role) -> dict[str, np.ndarray]:
        first = self._trunks[names[0]]
        start = time.perf_counter()
        if self._cache is None or first.digest is None or not all(isinstance(text, str) for text in texts):
            whole = len(names) == 1 or first.digest is None
            below = _encode(first.model if whole else first.body, texts, role, **self._options)
        else:
            whole, prompt = False, prompt_of(first.model, role)
            below = self._cache.get(
                first.digest, prompt, role, texts, lambda: _encode(first.body, texts, role, **self._options)
            )
        spent, rows = time.perf_counter() - start, {}
        for name in names:
            start = time.perf_counter()
            rows[name] = np.asarray(below if whole else self._trunks[name].finish(below), np.float32)
            self.seconds[name] += spent + time.perf_counter() - start
        return rows

    def same(self, one: str, other: str) -> bool:
        """Whether two models are the same from the first module to the last."""
        first, second = self._trunks[one], self._trunks[other]
        return first.key == second.key and first.weighted() == second.weighted()

    def continues(self, one: str, other: str) -> bool:
        """Whether the second model is the first with further modules, but for ``Normalize``."""
        first, second = self._trunks[one], self._trunks[other]
        shorter, longer = first.weighted(), second.weighted()
        return first.key == second.key and len(shorter) < len(longer) and longer[: len(shorter)] == shorter

    def said(self) -> str:
        """Return in words which models encode the texts, and why; a model without a name is the base model."""
        groups = self.groups("document", "query")
        (first, *sharing), *others = [[name or "the base model" for name in names] for names in groups]
        lines = [f"Encoded by {first}"]
        if sharing:
            have = "has the same modules below its head" if len(sharing) == 1 else "have the same below their heads"
            lines = [f"Encoded once, by {first}: {' and '.join(sharing)} {have}"]
        for name, *same in others:
            why = "other modules below the head, or another prompt"
            if any(trunk.digest is None for trunk in self._trunks.values()):
                why = "modules that cannot be compared"
            lines.append(f"{', '.join([name, *same])} by itself, as it has {why}")
        return "; ".join(lines) + "."


class _Trunk:
    """The modules of a model that encode, and the light ones behind them.

    Attributes:
        model: The whole model.
        tail: The light modules at its end.
        digest: Digest of the modules before these; None where it cannot be told what they depend on.
        key: What is equal for models that share these modules.
    """

    def __init__(self, model: SentenceTransformer, known: bool) -> None:
        self.model = model
        modules = list(model.children())
        end = len(modules)
        while end > 1 and _is_light(modules[end - 1]):
            end -= 1
        self._modules, self.tail = modules[:end], modules[end:]
        self.digest = _digest(model, self._modules) if known else None
        self.key = ("same object", id(model)) if self.digest is None else ("same modules", self.digest)
        self._body: SentenceTransformer | None = None

    @property
    def body(self) -> SentenceTransformer:
        """The modules that encode, as a model."""
        if self._body is None:
            self._body = assemble(self.model, self._modules)
        return self._body

    def take(self, other: _Trunk) -> None:
        """Take the modules that encode from another model, which has the same."""
        self._modules = other._modules
        for place, module in enumerate(self._modules):
            self.model[place] = module

    def weighted(self) -> list[str]:
        """Return a digest for each module of the tail that has weights."""
        return [_digest_of(module) or str(id(module)) for module in self.tail if any(True for _ in module.parameters())]

    def finish(self, rows: np.ndarray) -> np.ndarray:
        """Return what the modules of the tail make of the embeddings below them."""
        import torch  # noqa: PLC0415, takes seconds to import

        weight = next((parameter for module in self.tail for parameter in module.parameters()), None)
        dtype = torch.float32 if weight is None else weight.dtype
        with torch.inference_mode():
            features: Any = {_EMBEDDING: torch.from_numpy(rows).to(self.model.device, dtype)}
            for module in self.tail:
                module.eval()
                features = module(features)
            finished = features[_EMBEDDING].float().cpu().numpy()
        return finished[:, : self.model.truncate_dim]


def _encode(model: SentenceTransformer, texts: list[str], role: Role, **options: Any) -> np.ndarray:
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


def _is_light(module: nn.Module) -> bool:
    if not _is_of(module, _LIGHT):
        return False
    ends = (getattr(module, name, _EMBEDDING) for name in ("module_input_name", "module_output_name"))
    return all(end in (None, _EMBEDDING) for end in ends)


def _is_of(module: nn.Module, names: set[str]) -> bool:
    kind = type(module)
    return kind.__name__ in names and kind.__module__.partition(".")[0] in _PACKAGES


def body_digest(model: SentenceTransformer, modules: Sequence[nn.Module] | None = None) -> str | None:
    """Return a digest of all that embeddings depend on but texts and prompt; None if it cannot be told."""
    return _digest(model, list(model.children()) if modules is None else modules)


def _digest(model: SentenceTransformer, modules: Sequence[nn.Module]) -> str | None:
    """Return a digest of all that the embeddings of modules depend on but the prompt; None if that cannot be told."""
    if any((getattr(model, "module_kwargs", None) or {}).values()):
        return None
    digests = [_digest_of(module) for module in modules]
    if any(digest is None for digest in digests):
        return None
    return hashlib.sha256("".join(map(str, digests)).encode()).hexdigest()


def _digest_of(module: Any) -> str | None:
    if not _is_of(module, _KNOWN):
        return None
    settings: dict[str, Any] = {"class": type(module).__name__, "config": module.get_config_dict()}
    if tokenizer := getattr(module, "tokenizer", None):
        if (read := _tokenizer(tokenizer)) is None:
            return None
        settings |= {"tokenizer": read} | {name: getattr(module, name, None) for name in _TOKENIZING}
    if (inner := getattr(module, "auto_model", None)) is not None:
        if getattr(module, "backend", "torch") != "torch" or hasattr(inner, "peft_config"):
            return None  # the weights lie in a graph, or an adapter scales them
        config = inner.config.to_dict()
        settings["transformer"] = type(inner).__name__, {key: config[key] for key in config if key not in _IDLE}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_content(tensor))
    return digest.hexdigest()


def _content(tensor: Any) -> memoryview:
    import torch  # noqa: PLC0415, takes seconds to import

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _tokenizer(tokenizer: Any) -> dict[str, Any] | None:
    """Return what a fast tokenizer does, but for what the last call has set; None of another."""
    fast = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(fast, "to_str"):
        return None
    content: dict[str, Any] = json.loads(fast.to_str())
    said = {
        name: str(getattr(tokenizer, name, None)) for name in ("model_max_length", "padding_side", "truncation_side")
    }
    return {key: content[key] for key in content if key not in ("padding", "truncation")} | said
