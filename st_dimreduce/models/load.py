"""Loading models and heads by name or folder, their files checked first."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_dimreduce.head import CONFIG, MODEL_KEY, RECORD, WEIGHTS, Head, read_dense, record_in_card
from st_dimreduce.models.folder import REMOTE, check_entries, read_layout
from st_dimreduce.untrusted import read_json, read_object, stay_inside

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_BEHIND = ("Normalize", "Pooling")  # modules that may stand behind a head
_CARD = "README.md"


def load_model(name_or_path: str | os.PathLike[str], *, trust_remote_code: bool = False) -> SentenceTransformer:
    """Load a model by name or path, its files having been checked.

    Args:
        name_or_path: Name of a model on the Hub, or a folder.
        trust_remote_code: Whether code that comes with the model may run. Defaults to False; say True only of a model
            whose code you have read.

    Raises:
        ValueError: If it cannot be loaded; says why in one line.
    """
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415, takes seconds to import

    name = os.fspath(name_or_path)
    try:
        if Path(name).is_dir():
            read_layout(name, trust_remote_code)
        else:
            _check_name(name, trust_remote_code)
        return SentenceTransformer(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # what the readers raise on a damaged file is not all of one kind
        reason = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in reason and REMOTE not in reason:
            reason = REMOTE
        raise ValueError(f"no model could be loaded from {name!r}: {reason:.1000}") from error


def load_head(path: str | os.PathLike[str]) -> Head:
    """Read a head with its record, without loading the model it stands in.

    Args:
        path: A folder that :func:`st_dimreduce.save_head` wrote, or a reduced model: its folder, or its name on the
            Hub, of which the head's files alone are downloaded.

    Raises:
        ValueError: If there is no head.
    """
    folder = Path(path)
    if folder.is_dir() and not (folder / "modules.json").exists():
        return Head.load(folder)
    try:
        root, relative = _local_head(folder) if folder.is_dir() else _remote_head(os.fspath(path))
        config, tensors = read_dense(root / relative)
        return Head.of_dense(config, tensors, _record(root, config))
    except (OSError, ValueError, TypeError) as error:
        expected = "expected the folder of a head or of a reduced model, or its name on the Hub"
        raise ValueError(f"{os.fspath(path)} holds no head: {expected} ({' '.join(str(error).split())})") from error


def _local_head(root: Path) -> tuple[Path, str]:
    relative = _head_entry(root / "modules.json")
    for folder in (root, root / relative):
        stay_inside(root, folder)
    return root, relative


def _remote_head(name: str) -> tuple[Path, str]:
    from huggingface_hub import hf_hub_download  # noqa: PLC0415, needed for names alone
    from huggingface_hub.errors import EntryNotFoundError  # noqa: PLC0415

    check_hub_name(name)
    repo = _hub_name(name)
    modules = Path(hf_hub_download(repo, "modules.json"))
    relative = _head_entry(modules)
    for file in (CONFIG, WEIGHTS):
        hf_hub_download(repo, f"{relative}/{file}")
    for file in (RECORD, CONFIG, _CARD):  # of the model, where they are
        with suppress(EntryNotFoundError):
            hf_hub_download(repo, file)
    return modules.parent, relative


def _head_entry(modules: Path) -> str:
    """Return the path of the head among the modules of a model."""
    kept = [
        (relative, type_)
        for relative, type_ in check_entries(read_json(modules), trust_remote_code=True)
        if type_.rpartition(".")[2] not in _BEHIND
    ]
    relative, type_ = kept[-1] if kept else ("", "no module")
    if type_.rpartition(".")[2] not in ("Dense", "DimReduce"):
        raise ValueError(f"the model ends in {type_}: expected a DimReduce or Dense as its head")
    return relative


def _record(root: Path, dense: dict[str, Any]) -> Any:
    """Return the record of a head: its own, that of its folder, or that in its transformer's config or its card."""
    if "record" in dense:
        return dense["record"]
    if (root / RECORD).exists():
        return read_object(root / RECORD)
    if (root / CONFIG).exists():
        return read_object(root / CONFIG).get(MODEL_KEY, {})
    card = (root / _CARD).read_text(encoding="utf-8") if (root / _CARD).is_file() else None
    return record_in_card(card).to_dict()


def check_hub_name(name: str) -> None:
    """Check that a string may be the name of a model on the Hub.

    Raises:
        ValueError: If it is a file, or no such name.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # noqa: PLC0415, needed for names alone

    if Path(name).exists():
        raise ValueError("it is a file, expected the folder of a model")
    try:
        validate_repo_id(name)
        if name.startswith((".", "~", "/")):
            raise HFValidationError
    except HFValidationError as error:
        raise ValueError("it is no folder, and no name of a model on the Hub such as 'user/model'") from error


def _hub_name(name: str) -> str:
    return name if "/" in name else f"sentence-transformers/{name}"


def _check_name(name: str, trust_remote_code: bool) -> None:
    """Check a name on the Hub, and the modules it stands for before any other file is downloaded."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415, needed for names alone
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    check_hub_name(name)
    try:
        modules = hf_hub_download(_hub_name(name), "modules.json")
    except (OSError, HfHubHTTPError, ValueError):  # Sentence Transformers looks elsewhere too, and says what is wrong
        return
    check_entries(read_json(Path(modules)), trust_remote_code)
