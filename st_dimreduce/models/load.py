"""Loading models and heads by name or folder, their files checked first."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    find_transformers,
    inner_parts,
    read_held,
    read_layout,
    read_parts,
)
from st_dimreduce.record import RECORD, FitRecord, read_record
from st_dimreduce.untrusted import printable, read_json, read_object, short, stay_inside

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
_UNUSED = re.compile(r"(^|\.)(pooler|decoder)\.|position_ids$")  # tensors that no embedding depends on


def check_names(names: Sequence[str], paths: Sequence[str | os.PathLike[str]]) -> None:
    """Raise ``UserError`` if two reduced models, from these paths, have the same name."""
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
        UserError: If it cannot be loaded; says why in one line.
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
    other = f"; {MULTI_VECTOR}" if kind == "MultiVectorEncoder" else ", its name or its folder"
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

    The model is built without memory for its weights, to count them.
    """
    size = sum(path.stat().st_size for path in part.folder.iterdir() if path.suffix in {".safetensors", ".bin"})
    if not size and any(part.folder.glob("onnx/*.onnx")):
        raise UserError("it holds a graph and no weights: load it with SentenceTransformer(path, backend='onnx')")
    import torch  # noqa: PLC0415, takes seconds to import
    from transformers import AutoConfig, AutoModel  # noqa: PLC0415

    config = AutoConfig.from_pretrained(part.folder, trust_remote_code=False, local_files_only=True)
    if type(config) not in AutoModel._model_mapping:
        return
    with torch.device("meta"):
        model = AutoModel.from_config(config, attn_implementation="eager")
    shapes, where = read_held(part.folder), part.folder / CONFIG
    held = min(size // 2, size if shapes is None else sum(math.prod(shape) for shape in shapes.values()))
    count = sum(each.numel() for each in (*model.parameters(), *model.buffers()))
    most = _MOST_TIMES * held + _MOST_MORE
    if count > most:
        raise UserError(f"{where} asks for {count:,} weights: expected at most {most:,}, from what its files hold")
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    needed = {name: each for name, each in model.state_dict().items() if name not in tied and not _UNUSED.search(name)}
    lacking = sum(each.numel() for each in needed.values()) - held
    if shapes is not None and getattr(config, "quantization_config", None) is None and lacking > 0:
        raise UserError(
            f"{part.folder} lacks {lacking:,} of the weights that its config.json asks for: those would be random"
        )
    if shapes is not None and "auto_map" in part.config:  # perhaps of another kind, under a name that is known
        # Files of TensorFlow's time, and of Transformers 5.0, have other names for these; every version reads both.
        names = [re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name)) for name in shapes]
        endings = {name.split(".", start)[-1] for name in names for start in range(name.count(".") + 1)}
        unknown = [name for name in needed if name not in endings and name.partition(".")[2] not in endings]
        if unknown:
            raise UserError(f"{part.folder} lacks {unknown[0]!r}, which would be random numbers: {REMOTE}")


def load_head(path: str | os.PathLike[str]) -> BaseHead:
    """Read a head with its record, without loading the model it stands in.

    Args:
        path: A folder that :meth:`Head.save` wrote, or a reduced model: its folder, or its name on the Hub, of which
            only the files of the head are downloaded.

    Raises:
        UserError: If there is no head.
    """
    folder, name = Path(path), os.fspath(path)
    if folder.is_dir() and not (folder / _MODULES).exists():
        return BaseHead.load(folder)
    try:
        remote = not folder.is_dir()
        root = _snapshot(name, [_MODULES, RECORD, CONFIG, CARD])[1] if remote else folder
        relative = _head_entry(root / _MODULES)
        if remote:
            _snapshot(name, [f"{relative}/{file}" for file in (CONFIG, WEIGHTS)], root.name)
            if not (root / relative / WEIGHTS).exists():
                _snapshot(name, [f"{relative}/{PICKLE}"], root.name)
        for place in (root, root / relative):
            stay_inside(root, place)
        config, tensors = read_dense(root / relative)
        return BaseHead.of_dense(config, tensors, read_record(root, config))
    except (OSError, ValueError, TypeError) as error:
        expected = "expected the folder of a head or of a reduced model, or its name on the Hub"
        raise UserError(f"{name} holds no head: {expected} ({' '.join(str(error).split())})") from error


def _head_entry(modules: Path) -> str:
    """Return the path of the head among the modules of a model."""
    entries = check_entries(read_json(modules), trust_remote_code=True)
    kinds = [(relative, type_.rpartition(".")[2]) for relative, type_ in entries]
    relative, kind = next((each for each in reversed(kinds) if each[1] not in _BEHIND), ("", "no module"))
    if kind not in ("Dense", "DimReduce"):
        raise UserError(f"the model ends in {short(kind)}: expected a DimReduce or Dense as its head")
    return relative


def check_hub_name(name: str) -> None:
    """Check that a string may be the name of a model on the Hub.

    Raises:
        UserError: If it is a file, or cannot be such a name.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # noqa: PLC0415, needed for names alone

    if Path(name).exists():
        raise UserError("it is a file, expected the folder of a model")
    try:
        validate_repo_id(name.lstrip("."))  # one that begins with a dot is a path
    except HFValidationError as error:
        raise UserError("it is neither a folder nor the name of a model on the Hub such as 'user/model'") from error


def _download(name: str, trust_remote_code: bool) -> tuple[str, Path]:
    """Download a model from the Hub: its settings first, and its weights once these are known to be harmless.

    Returns:
        Its full name, and its folder.
    """
    repo, folder = _snapshot(name, [*_SETTINGS, *(["*.py"] if trust_remote_code else [])])
    parts = read_parts(folder, trust_remote_code)
    weighty = {
        each.folder
        for part in parts
        for each in (part, *inner_parts(part, trust_remote_code))
        if each.kind not in _WEIGHTLESS
    }
    prefixes = {place: "" if place == folder else f"{place.relative_to(folder).as_posix()}/" for place in weighty}
    patterns = [f"{prefix}{file}" for prefix in prefixes.values() for file in (WEIGHTS, _SHARDS)]
    _snapshot(repo, patterns, folder.name)
    if lacking := [prefix for place, prefix in prefixes.items() if not any(place.glob("*.safetensors"))]:
        _snapshot(repo, [f"{prefix}{_PICKLES}" for prefix in lacking], folder.name)
    return repo, folder


def _snapshot(name: str, patterns: list[str], commit: str | None = None) -> tuple[str, Path]:
    """Download files of a model from the Hub, or find them in the cache.

    Returns:
        The model's full name, and their folder in the cache, named after the commit.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache  # noqa: PLC0415, needed for names alone
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError  # noqa: PLC0415

    check_hub_name(name)
    repos = [name] if "/" in name else [f"sentence-transformers/{name}", name]
    reason: Exception | None = None
    for repo in repos:
        try:
            found = snapshot_download(repo, revision=commit, allow_patterns=patterns, ignore_patterns=_NEVER)
            return repo, Path(found)
        except (LocalEntryNotFoundError, RepositoryNotFoundError) as error:
            reason = error
        for file in (_MODULES, CONFIG):  # the cache may hold what a model needs, but not all that matches
            cached = try_to_load_from_cache(repo, file, revision=commit)
            if isinstance(cached, str):
                return repo, Path(cached).parent
    message = " ".join(str(reason).split())
    raise UserError(f"{' or '.join(repos)} couldn't be downloaded, and is not in the cache: {message}") from reason
