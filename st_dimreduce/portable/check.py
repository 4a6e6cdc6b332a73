"""Checking a model's folder for what makes a reader fail or give other vectors, and rewriting it for all readers.

Text Embeddings Inference does not stop at a ``modules.json`` that it cannot parse: it leaves out every ``Dense`` and
serves the unreduced embeddings. What can be mended is found by the rewrite itself, done on a copy of the settings; the
rest is a few facts about the modules. Neither loads a weight or imports a module.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from st_dimreduce.base_head import ACTIVATIONS, CONFIG, PICKLE, WEIGHTS
from st_dimreduce.enums import Outcome
from st_dimreduce.errors import UserError
from st_dimreduce.files import new_folder, write_json
from st_dimreduce.models.folder import TEXT, Part, inner_parts, needs_own_code, pooling_modes, read_layout
from st_dimreduce.portable.graphs import EXPORT, graphs_of
from st_dimreduce.portable.layout import (
    MODEL_CONFIG,
    MODULES,
    OLD_NAMES,
    POOLING_KEYS,
    SENTENCE_CONFIG,
    SERVED,
    SIZES,
    TOKENIZER,
    TOKENIZER_CONFIG,
    beyond_layout,
    in_order,
    is_head,
    misread_before,
    read_settings,
    reads_sentences,
    rewrite,
    to_safetensors,
)
from st_dimreduce.portable.readers import FIX, REMOVE, Facts, Problem, Reading, readings
from st_dimreduce.record import RECORD
from st_dimreduce.untrusted import printable, read_json, read_object, short, stay_inside

_UNREDUCED, _DIFFERENT, _FAILS = Outcome.UNREDUCED, Outcome.DIFFERENT, Outcome.FAILS
_SERVERS = {"tei": _DIFFERENT, "vllm": _DIFFERENT}
_Fact = tuple[str, str, str, dict[str, Outcome]]  # the file, what is wrong, what to do, what becomes of it
_POOLED = {POOLING_KEYS[mode] for mode in ("cls", "mean", "lasttoken")}  # by Text Embeddings Inference
_REDUCE = "reduce the base model again, with the head directly behind Pooling"
_LAYOUT = "not as in the portable layout"
_NEWER = "use it with Sentence Transformers from 5.4 on"  # as the base model
# What the rewrite adds and leaves out for tidiness: no reader misses it, or minds it.
_ASSUMED: dict[str, Any] = {"include_prompt": True, "do_lower_case": False, "model_type": "SentenceTransformer"}
_ASSUMED |= dict.fromkeys(set(POOLING_KEYS.values()) - {POOLING_KEYS["cls"], POOLING_KEYS["mean"]}, False)
_IGNORED = {"__version__", "st_dimreduce"}


@dataclass(frozen=True)
class Check:
    """What was found in a model's folder. It is true if nothing is wrong there.

    Attributes:
        problems: What is wrong.
        readers: What each reader makes of the folder; empty if its model has no head.
    """

    problems: list[Problem]
    readers: list[Reading]

    def __bool__(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        found = [{"reader": each.reader, "outcome": each.outcome.value, "why": each.why} for each in self.readers]
        return {"problems": list(map(str, self.problems)), "readers": found}


def check(path: str | os.PathLike[str], fix: bool = False, *, trust_remote_code: bool = False) -> Check:
    """Say what each reader makes of a model's folder, and what is wrong in it.

    Readers are other versions of Sentence Transformers, servers, libraries and programs for ONNX files: the table in
    docs/serving.md. A folder that has no ONNX file is nothing wrong, though readers of those fail on it. Whether Text
    Embeddings Inference knows the kind of transformer depends on its version, and is not checked.

    Args:
        path: The folder of a model.
        fix: Whether to rewrite the folder in the portable layout first, as far as that can express the model. The new
            folder replaces the old one when it has been loaded and found to give the same vectors. Defaults to False:
            the folder is read, nothing in it is loaded or run.
        trust_remote_code: With ``fix``: whether code that comes with the model may run, to compare its vectors.
            Defaults to False.

    Returns:
        What was found, true if nothing is wrong.

    Raises:
        UserError: If the folder is not a model or is damaged. With ``fix``, also if it cannot be loaded, or would give
            other vectors; nothing is changed.
        OSError: If the folder cannot be written.
    """
    root = Path(path)
    if (root / RECORD).is_file() and not (root / MODULES).exists():
        raise UserError(f"{root} is a head: expected a model, which st-dimreduce attach makes of it")
    if fix:
        _fix(root.resolve(), trust_remote_code)
    parts, graphs = read_layout(root, trust_remote_code=True), graphs_of(root)
    weights = not (root / EXPORT).exists() or any([*root.glob("*.safetensors"), *root.glob("*/*.safetensors")])
    size = _size(root, parts, weights)
    # The modules beside an exported graph are for readers that take it for the transformer.
    problems = [*_unlike_layout(root, parts), *_facts(root, parts)] if weights else []
    if size is None:
        return Check(problems, [])
    for graph in graphs:
        if graph.sizes != {size}:
            sizes = " and ".join(map(str, sorted(graph.sizes)))
            what = f"it gives {sizes} dimensions, the model {size}" if sizes else "it is not an export of this model"
            problems.append(Problem(graph.where, what, REMOVE, {"onnx": _UNREDUCED}))
    return Check(problems, readings(Facts(size, problems, {graph.where: graph for graph in graphs}, weights)))


def _size(root: Path, parts: list[Part], weights: bool) -> int | None:
    """Return the size of the vectors of a reduced model or its export; None if it has no head."""
    sizes = [part.config.get("out_features") for part in parts if part.kind in {"Dense", "DimReduce"}]
    if not weights:
        sizes = [read_object(root / EXPORT).get("dimensions")]
    return sizes[-1] if sizes and isinstance(sizes[-1], int) else None


def unportable(found: Check) -> list[str]:
    """Return what no rewrite can mend in a folder that is to be written or published in the portable form.

    That is what an older Sentence Transformers misreads, unless the base model needs a newer one too; a head that
    servers would leave out or apply elsewhere; and a graph without the head.
    """
    rest = [problem for problem in found.problems if not problem.fixable and problem.remedy != _NEWER]
    return [str(each) for each in rest if each.remedy == _REDUCE or each.outcomes.keys() & {"new", "old", "onnx"}]


def _unlike_layout(root: Path, parts: list[Part]) -> Iterator[Problem]:
    """Name the settings that a rewrite into the portable layout would change."""
    if not (root / MODULES).exists():
        outcomes = dict.fromkeys(("new", "old", "tei", "vllm"), _UNREDUCED)
        yield Problem(MODULES, "it is missing", "save the model with save_portable", outcomes)
        return
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "model")
        shutil.copytree(root, folder, copy_function=_copy_settings, ignore=shutil.ignore_patterns(".*"))
        rewrite(folder, parts)
        old, new = (read_json(place / MODULES) for place in (root, folder))
        pairs = list(zip(old, new, strict=True))
        names = [
            key for key in ("idx", "type", "path") if any(repr(one.get(key)) != repr(two[key]) for one, two in pairs)
        ]
        if names:
            outcomes = {"tei": _UNREDUCED} | ({"old": _FAILS} if "type" in names else {})
            yield Problem(MODULES, f"{', '.join(names)} {_LAYOUT}", FIX, outcomes)
        moved = {entry["path"]: part for part, entry in zip(parts, new, strict=True)}
        for path in sorted(folder.rglob("*.json")):
            part = moved.get(path.relative_to(folder).parent.as_posix().removeprefix("."))
            before = root / path.relative_to(folder)
            if part and not before.exists():  # it was moved
                before = part.folder / path.name
            if path.name not in {MODULES, RECORD}:
                yield from _changed(root, before, path)
    for part in parts:
        if part.kind in {"Dense", "DimReduce"} and not (part.folder / WEIGHTS).exists():
            yield Problem(f"{part.path}/{PICKLE}", "its weights are a pickle, which some readers refuse", FIX)


def _copy_settings(source: str, target: str) -> None:
    """Copy a file of settings; of any other file the name alone."""
    shutil.copyfile(source, target) if source.endswith(".json") else Path(target).touch()


def _changed(root: Path, old: Path, new: Path) -> Iterator[Problem]:
    """Name the settings in a file that the rewrite changes, if a reader needs that."""
    if old.exists() and old.read_bytes() == new.read_bytes():
        return
    before, after = read_settings(old), read_settings(new)
    names = [name for name in {**before, **after} if _assumed(before, name) != _assumed(after, name)]
    if names:
        outcomes = {"tei": _FAILS} if new.name == MODEL_CONFIG else {"old": _FAILS, "tei": _FAILS}
        if new.name == TOKENIZER_CONFIG or "architectures" in after:
            outcomes = {} if names == [SIZES] else {"old": _DIFFERENT, "tei": _DIFFERENT}
        yield Problem(old.relative_to(root).as_posix(), f"{', '.join(map(printable, names))} {_LAYOUT}", FIX, outcomes)


def _assumed(settings: dict[str, Any], name: str) -> Any:
    """Return a setting, or what readers assume where it is missing; nothing for one that they ignore."""
    return None if name in _IGNORED else settings.get(name, _ASSUMED.get(name))


def _facts(root: Path, parts: list[Part]) -> Iterator[Problem]:
    """Name what a reader misreads and no rewrite can mend."""
    own = {"new": _FAILS, "old": _FAILS, "tei": _UNREDUCED, "vllm": _UNREDUCED}
    every = [each for part in parts for each in (part, *inner_parts(part, trust_remote_code=True))]
    for part in every:
        name = short(part.type)
        if is_head(part):
            yield Problem(MODULES, f"it names {name}, which only this package has", FIX, own)
        elif not part.type.startswith("sentence_transformers."):
            yield Problem(MODULES, f"it names {name}", "use modules of Sentence Transformers", own)
        elif part in parts and part.kind not in SERVED:
            served = dict.fromkeys(_SERVERS, _FAILS) if part is parts[0] else {"tei": _UNREDUCED, "vllm": _DIFFERENT}
            yield Problem(MODULES, f"it names {name}", "serve it with Sentence Transformers", served)
        if part.kind in _OF_KIND:
            for file, what, remedy, outcomes in _OF_KIND[part.kind](part):
                yield Problem((part.folder / file).relative_to(root).as_posix(), what, remedy, outcomes)
    yield from _order(root, parts, every)
    config = read_settings(root / MODEL_CONFIG)
    if config.get("truncate_dim") is not None:
        remedy = "truncate the vectors where they are used, or fit a head of this size"
        yield Problem(MODEL_CONFIG, f"truncate_dim is {short(config['truncate_dim'])}", remedy, _SERVERS)


def _order(root: Path, parts: list[Part], every: list[Part]) -> Iterator[Problem]:
    """Name what a reader misreads of modules together; ``every`` has those in a Router too."""
    kinds = [part.kind for part in parts]
    dense = [place for place, kind in enumerate(kinds) if kind in {"Dense", "DimReduce"}]
    if "Normalize" in kinds[: max(dense, default=0)]:
        yield Problem(MODULES, "a Normalize is before a Dense", _REDUCE, _SERVERS)
    if "Pooling" in kinds and min(dense, default=len(kinds)) < kinds.index("Pooling"):
        yield Problem(MODULES, "a Dense is before Pooling", _REDUCE, _SERVERS)
    if any(part.kind == "BoW" for part in every):
        what = "it has a BoW, whose words it puts in another order each time"
        yield Problem(MODULES, what, "use it with Sentence Transformers from 5 on", {"old": _DIFFERENT})
    for body, pooling in pairwise(every):
        if body.kind == "Transformer" and pooling.kind == "Pooling":
            side = read_settings(body.folder / TOKENIZER_CONFIG).get("padding_side", "right")
            with_prompt = pooling.config.get("include_prompt") is not False
            if found := misread_before(side, pooling_modes(pooling.config), with_prompt):
                remedy = f"use it from {found[1].rpartition(' ')[2]} on, or pad on the right and pool the prompt"
                where = (pooling.folder / CONFIG).relative_to(root).as_posix()
                yield Problem(where, found[0], remedy, {"old": _DIFFERENT})


def _transformer(part: Part) -> Iterator[_Fact]:
    names = part.config.get("architectures")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        yield CONFIG, "it names no architectures", "save the base model again", {"tei": _FAILS}
    elif any(name.endswith("Classification") for name in names):
        remedy = "save the base model without its classifier"
        yield CONFIG, f"it is the classifier {', '.join(names)}", remedy, {"tei": _FAILS}
    if needs_own_code(part.config):
        outcomes = dict.fromkeys(("new", "old", "tei", "vllm"), _FAILS)
        yield CONFIG, "it needs code of its own", "choose a base model that does not", outcomes
    if not (part.folder / TOKENIZER).exists():
        yield TOKENIZER, "it is missing", "save the model with a fast tokenizer", {"tei": _FAILS}
    if not any((part.folder / name).exists() for name in (WEIGHTS, f"{WEIGHTS}.index.json")):
        yield WEIGHTS, "it is missing", "save the model again", {"tei": _FAILS}
    settings = read_settings(part.folder / SENTENCE_CONFIG)
    modes = settings.get("modality_config")
    if isinstance(modes, dict) and (more := sorted(set(modes) - TEXT)):
        yield SENTENCE_CONFIG, f"it reads {' and '.join(more)}", _NEWER, {"old": _FAILS, "tei": _FAILS}
        return
    for name in beyond_layout(settings):
        what, remedy = f"it sets {name} to {short(settings[name])}", "set it to its default and save the model again"
        yield SENTENCE_CONFIG, what, remedy, {"old": _FAILS, "tei": _DIFFERENT}
    if settings.get("do_lower_case") is True:
        yield SENTENCE_CONFIG, "do_lower_case is true", "lowercase in tokenizer.json", {"tei": _DIFFERENT}


def _pooling(part: Part) -> Iterator[_Fact]:
    modes = pooling_modes(part.config)
    if "pooling_mode" in part.config and not in_order(modes):
        remedy = f"use the order {', '.join(POOLING_KEYS)}"
        yield CONFIG, f"it concatenates the poolings {', '.join(modes)}", remedy, {"old": _FAILS, "tei": _DIFFERENT}
    elif len(modes) > 1:
        what = f"it concatenates the poolings {', '.join(modes)}"
        yield CONFIG, what, "choose a base model with one", {"tei": _DIFFERENT}
    elif not {POOLING_KEYS.get(mode, mode) for mode in modes} & _POOLED:
        remedy = "choose a base model with cls, mean or lasttoken"
        yield CONFIG, f"its pooling is {', '.join(modes) or 'none'}", remedy, {"tei": _FAILS}
    if part.config.get("include_prompt") is False:
        yield CONFIG, "include_prompt is false", "use it without prompts there", {"tei": _DIFFERENT}


def _normalize(part: Part) -> Iterator[_Fact]:
    if not reads_sentences(part.config):
        yield CONFIG, "it does not normalise the sentence embedding", _REDUCE, {"old": _DIFFERENT, **_SERVERS}


def _dense(part: Part) -> Iterator[_Fact]:
    activation = part.config.get("activation_function", ACTIVATIONS["Tanh"])
    if not reads_sentences(part.config):
        yield CONFIG, "it does not reduce the sentence embedding", _REDUCE, {"old": _FAILS, **_SERVERS}
    if part.config.get("use_residual"):
        yield CONFIG, "it has a residual connection", "train the head without", {"old": _DIFFERENT, **_SERVERS}
    if activation not in ACTIVATIONS.values():
        yield CONFIG, f"its activation is {activation}", "train the head with Tanh or Identity", {"tei": _FAILS}


_OF_KIND = {
    "Transformer": _transformer,
    "Pooling": _pooling,
    "Normalize": _normalize,
    "Dense": _dense,
    "DimReduce": _dense,
}


def _fix(root: Path, trust_remote_code: bool) -> None:
    """Rewrite a model's folder in place, in the layout that every reader knows."""
    from st_dimreduce.models.load import load_model  # noqa: PLC0415, a check alone loads nothing
    from st_dimreduce.portable.verify import check_vectors  # noqa: PLC0415

    parts = read_layout(root, trust_remote_code=True)
    if not (root / MODULES).exists():
        raise UserError(f"{root} has no {MODULES}: save the model with save_portable")
    for place, folders, _ in os.walk(root):  # hidden ones too: copying follows links
        stay_inside(root, Path(place))
        for name in folders:
            if Path(place, name).is_symlink():
                raise UserError(f"{Path(place, name)} is a link to a folder: replace it with what it leads to")
    with new_folder(root, overwrite=True) as folder:
        shutil.copytree(root, folder, dirs_exist_ok=True)
        original = root
        if any(is_head(part) for part in parts):  # as the Dense that it is at inference, it loads without trust
            entries, original = read_json(folder / MODULES), folder
            for entry, part in zip(entries, parts, strict=True):
                entry["type"] = OLD_NAMES["Dense"] if is_head(part) else entry["type"]
            write_json(folder / MODULES, entries)
        before = load_model(original, trust_remote_code=trust_remote_code)
        to_safetensors(folder, parts)
        rewrite(folder, parts)
        check_vectors(before, folder, trust_remote_code=trust_remote_code)
