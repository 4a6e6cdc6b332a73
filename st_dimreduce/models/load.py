"""Loading models and heads by name or folder, their files checked first."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_dimreduce.base_head import (
    CONFIG,
    PICKLE,
    WEIGHTS,
    BaseHead,
    read_dense,
)
from st_dimreduce.errors import UserError
from st_dimreduce.models.folder import (
    CARD,
    MULTI_VECTOR,
    REMOTE,
    Part,
    check_entries,
    count_held,
    find_transformers,
    inner_parts,
    read_held,
    read_layout,
    read_parts,
)
from st_dimreduce.record import RECORD, FitRecord, read_record
from st_dimreduce.untrusted import Shapes, printable, read_json, read_object, short, stay_inside

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_BEHIND = ("Normalize", "Pooling")  # modules that may stand behind a head
_MODULES = "modules.json"
_MODEL_CONFIG = "config_sentence_transformers.json"
# What a repository on the Hub holds of a model, before its weights: settings and the files of tokenizers.
_SETTINGS = ["*.json", "*.txt", "*.model", "*.spm", "*.bpe", "*.codes", "*.vocab", "*.tiktoken", "*.jinja", CARD]
_NEVER = ["onnx/*", "openvino/*", "coreml/*", "checkpoint-*/*", "runs/*", ".*"]
_WEIGHTLESS = ("Normalize", "Pooling", "Dropout", "BoW", "Router", "Asym")
_SHARDS = "model-*-of-*.safetensors"
_PICKLES = "pytorch_model*.bin"
_MOST_TIMES = 4  # the weights on file that the loader may allocate: some files lack half of the model's
_MOST_MORE = 2**23
_PREFIXES = {"model.", "transformer.", "encoder."}  # of a tensor's name, where a larger model was saved
_OLD_ENDS = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}  # of what TensorFlow trained


def check_names(names: Sequence[str], paths: Sequence[str | os.PathLike[str]]) -> None:
    """Raise ``ValueError`` if two reduced models, from these paths, are called the same."""
    if len(set(names)) < len(names):
        raise UserError(f"reduced models {[os.fspath(path) for path in paths]} have folders of one name: rename them")


def load_model(
    name_or_path: str | os.PathLike[str], *, trust_remote_code: bool = False, device: str | None = None
) -> SentenceTransformer:
    """Load a model by name or path, its files having been checked.

    Args:
        name_or_path: Name of a model on the Hub, or a folder.
        trust_remote_code: Whether code that comes with the model may run. Defaults to False; say True only of a model
            whose code you have read.
        device: Where to load it, such as ``"cpu"``. Defaults to None: the best there is.

    Raises:
        ValueError: If it cannot be loaded; says why in one line.
    """
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415, takes seconds to import

    if not isinstance(name_or_path, (str, os.PathLike)):
        raise no_model(name_or_path)
    name = os.fspath(name_or_path)
    try:
        is_folder = Path(name).is_dir()
        repo, folder = (None, Path(name).absolute()) if is_folder else _download(name, trust_remote_code)
        parts = read_layout(folder, trust_remote_code)
        _check_kind(folder / _MODEL_CONFIG)
        for part in find_transformers(parts, trust_remote_code):
            if not (trust_remote_code and "auto_map" in part.config):
                _check_weights(part)
        model = SentenceTransformer(
            str(folder),
            device=device,
            trust_remote_code=trust_remote_code,
            local_files_only=not trust_remote_code,  # code that comes with a model may lie in another repository
            model_kwargs={"weights_only": True},
        )
        _keep_record(model, folder / RECORD)
    except Exception as error:  # what the readers raise on a damaged file is not all of one kind
        reason = printable(" ".join(str(error).split())) or type(error).__name__
        if "trust_remote_code" in reason and REMOTE not in reason:
            reason = REMOTE
        raise UserError(f"no model could be loaded from {name!r}: {reason:.1000}") from error
    if repo is not None:
        _name(model, repo, folder.name)
    return model


def no_model(given: object) -> ValueError:
    """Return the error that says what was given in place of a ``SentenceTransformer``."""
    kind = type(given).__name__
    other = f": {MULTI_VECTOR}" if kind == "MultiVectorEncoder" else ", its name or its folder"
    return UserError(f"the model is a {kind}: expected a SentenceTransformer{other}")


def _keep_record(model: SentenceTransformer, path: Path) -> None:
    """Give a reduced model the record in its folder, which has all that is known of its head."""
    from st_dimreduce.dim_reduce import head_of, keep_record  # noqa: PLC0415, takes seconds to import

    if not path.exists():
        return
    try:
        dense, _ = head_of(model)
    except ValueError:  # it has no head
        return
    if type(dense).__name__ == "Dense":  # a DimReduce has its own
        content = read_object(path)
        try:
            keep_record(model, FitRecord.from_dict(content))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path} is not as st_dimreduce writes it: {error}") from error


def _name(model: SentenceTransformer, repo: str, commit: str) -> None:
    """Give a model its name on the Hub, in place of that of the folder it was loaded from."""
    model.model_card_data.base_model = repo
    model.model_card_data.base_model_revision = commit
    for module in model.modules():
        if (config := getattr(module, "config", None)) is not None and hasattr(config, "name_or_path"):
            config.name_or_path = repo


def _check_kind(path: Path) -> None:
    """Refuse a model of another kind, of which Sentence Transformers would load other modules than it names."""
    kind = read_object(path).get("model_type", "SentenceTransformer") if path.exists() else "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise UserError(f"{path} says model_type {short(kind)}: expected SentenceTransformer")


def _check_weights(part: Part) -> None:
    """Refuse a config whose weights the files lack: transformers would allocate them, and fill them at random.

    The model is built without memory for its weights, to count and name them.
    """
    if not count_held(part) and any(part.folder.glob("onnx/*.onnx")):
        raise UserError("it holds a graph and no weights: load it with SentenceTransformer(path, backend='onnx')")
    import torch  # noqa: PLC0415, takes seconds to import
    from transformers import AutoConfig, AutoModel  # noqa: PLC0415

    config = AutoConfig.from_pretrained(part.folder, trust_remote_code=False, local_files_only=True)
    if type(config) not in AutoModel._model_mapping:
        return
    with torch.device("meta"):
        model = AutoModel.from_config(config, attn_implementation="eager")
    count = sum(each.numel() for each in (*model.parameters(), *model.buffers()))
    most = _MOST_TIMES * count_held(part) + _MOST_MORE
    if count > most:
        where = part.folder / CONFIG
        raise UserError(f"{where} asks for {count:,} weights: expected at most {most:,}, from what its files hold")
    held = read_held(part.folder)
    lacking = [] if held is None else _lacking(model, held, renamed="auto_map" not in part.config)
    if lacking:
        code = f", unless {REMOTE}" if "auto_map" in part.config else ""
        raise UserError(
            f"{part.folder} lacks {len(lacking)} tensors that its config.json asks for, such as {lacking[0]!r}, which "
            f"would be random numbers: expected the weights of a whole model{code}"
        )


def _lacking(model: Any, held: Shapes, renamed: bool) -> list[str]:
    """Name the tensors of a model that are in none of its files, but for those that no embedding depends on.

    Args:
        model: The model.
        held: Shapes of the tensors in the files.
        renamed: Whether tensors of other names may be meant: transformers renames, joins and splits some.
    """
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    unused, lacking = dict(held), []
    for name, tensor in model.state_dict().items():
        if name in tied or re.search(r"(^|\.)(pooler|decoder)\.|position_ids$", name):
            continue
        names = {name, *(name.removesuffix(new) + old for new, old in _OLD_ENDS.items() if name.endswith(new))}
        starts = {"", f"{model.base_model_prefix}.", *_PREFIXES}
        ends = [f"{start}{each}" for each in names for start in starts] + [each.partition(".")[2] for each in names]
        found = next((end for end in ends if end in held and math.prod(held[end]) == tensor.numel()), None)
        if found is None:
            lacking.append(name)
        else:
            unused.pop(found, None)
    spare = sum(math.prod(shape) for shape in unused.values())
    needed = sum(model.state_dict()[name].numel() for name in lacking)
    return [] if renamed and needed <= spare else lacking


def load_head(path: str | os.PathLike[str]) -> BaseHead:
    """Read a head with its record, without loading the model it stands in.

    Args:
        path: A folder that :func:`st_dimreduce.save_head` wrote, or a reduced model: its folder, or its name on the
            Hub, of which the head's files alone are downloaded.

    Raises:
        ValueError: If there is no head.
    """
    folder = Path(path)
    if folder.is_dir() and not (folder / "modules.json").exists():
        return BaseHead.load(folder)
    try:
        root, relative = _local_head(folder) if folder.is_dir() else _remote_head(os.fspath(path))
        config, tensors = read_dense(root / relative)
        return BaseHead.of_dense(config, tensors, read_record(root, config))
    except (OSError, ValueError, TypeError) as error:
        expected = "expected the folder of a head or of a reduced model, or its name on the Hub"
        raise UserError(f"{os.fspath(path)} holds no head: {expected} ({' '.join(str(error).split())})") from error


def _local_head(root: Path) -> tuple[Path, str]:
    relative = _head_entry(root / "modules.json")
    for folder in (root, root / relative):
        stay_inside(root, folder)
    return root, relative


def _remote_head(name: str) -> tuple[Path, str]:
    _, root = _snapshot(name, [_MODULES, RECORD, CONFIG, CARD])
    relative = _head_entry(root / _MODULES)
    wanted = [f"{relative}/{file}" for file in (CONFIG, WEIGHTS)]
    _, root = _snapshot(name, wanted, root.name)
    if not (root / relative / WEIGHTS).exists():
        _, root = _snapshot(name, [f"{relative}/{PICKLE}"], root.name)
    return root, relative


def _head_entry(modules: Path) -> str:
    """Return the path of the head among the modules of a model."""
    kept = [
        (relative, type_)
        for relative, type_ in check_entries(read_json(modules), trust_remote_code=True)
        if type_.rpartition(".")[2] not in _BEHIND
    ]
    relative, type_ = kept[-1] if kept else ("", "no module")
    if type_.rpartition(".")[2] not in ("Dense", "DimReduce"):
        raise UserError(f"the model ends in {type_}: expected a DimReduce or Dense as its head")
    return relative


def check_hub_name(name: str) -> None:
    """Check that a string may be the name of a model on the Hub.

    Raises:
        ValueError: If it is a file, or no such name.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # noqa: PLC0415, needed for names alone

    if Path(name).exists():
        raise UserError("it is a file, expected the folder of a model")
    try:
        validate_repo_id(name)
        if name.startswith((".", "~", "/")):
            raise HFValidationError
    except HFValidationError as error:
        raise UserError("it is no folder, and no name of a model on the Hub such as 'user/model'") from error


def _download(name: str, trust_remote_code: bool) -> tuple[str, Path]:
    """Download a model from the Hub, its settings first, and the weights once these are known to be harmless.

    Returns:
        Its full name, and the folder it lies in, as any other model's.
    """
    repo, folder = _snapshot(name, [*_SETTINGS, *(["*.py"] if trust_remote_code else [])])
    parts = read_parts(folder, trust_remote_code)
    everything = [part for top in parts for part in (top, *inner_parts(top, trust_remote_code))]
    weighty = [part.folder for part in everything if part.kind not in _WEIGHTLESS]
    prefixes = {place: "" if place == folder else f"{place.relative_to(folder).as_posix()}/" for place in weighty}
    patterns = [f"{prefix}{file}" for prefix in prefixes.values() for file in (WEIGHTS, _SHARDS)]
    _snapshot(repo, patterns, folder.name)
    lacking = [prefix for place, prefix in prefixes.items() if not any(place.glob("*.safetensors"))]
    if lacking:
        _snapshot(repo, [f"{prefix}{_PICKLES}" for prefix in lacking], folder.name)
    return repo, folder


def _snapshot(name: str, patterns: list[str], commit: str | None = None) -> tuple[str, Path]:
    """Download files of a model from the Hub, or find them in the cache.

    Returns:
        The model's full name, and the folder of the cache that they lie in, named after the commit.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError  # noqa: PLC0415

    check_hub_name(name)
    repos = [name] if "/" in name else [f"sentence-transformers/{name}", name]
    for repo in repos[:-1]:
        with suppress(LocalEntryNotFoundError, RepositoryNotFoundError):
            return repo, _find(repo, patterns, commit)
    try:
        return repos[-1], _find(repos[-1], patterns, commit)
    except (LocalEntryNotFoundError, RepositoryNotFoundError) as error:
        reason = f"{' or '.join(repos)} couldn't be downloaded, and is not in the cache"
        raise UserError(f"{reason}: {' '.join(str(error).split())}") from error


def _find(repo: str, patterns: list[str], commit: str | None) -> Path:
    from huggingface_hub import snapshot_download, try_to_load_from_cache  # noqa: PLC0415, needed for names alone
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(repo, revision=commit, allow_patterns=patterns, ignore_patterns=_NEVER))
    except LocalEntryNotFoundError:  # also where the cache holds what a model needs, but not all that matches
        for file in (_MODULES, CONFIG):
            found = try_to_load_from_cache(repo, file, revision=commit)
            if isinstance(found, str):
                return Path(found).parent
        raise
