"""Publishing a reduced model on the Hugging Face Hub: all of it in one commit, or nothing."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    constants,
    get_token,
)
from huggingface_hub.errors import RevisionNotFoundError
from huggingface_hub.utils import HFValidationError, validate_repo_id
from sentence_transformers import SentenceTransformer

from st_dimreduce.errors import UserError
from st_dimreduce.models.load import load_model
from st_dimreduce.portable.card import MARK, PICTURE, model_card
from st_dimreduce.portable.check import check
from st_dimreduce.portable.layout import CARD, MODULES
from st_dimreduce.portable.save import save_portable, unportable
from st_dimreduce.portable.serving import Serving
from st_dimreduce.record import RECORD, FitRecord
from st_dimreduce.untrusted import printable, read_object, read_text

# What a model's folder may hold: data and texts. Whatever else may run code when it is loaded.
_SENT = {
    ".json",
    ".jsonl",
    ".safetensors",
    ".onnx",
    ".onnx_data",
    ".xml",
    ".md",
    ".txt",
    ".csv",
    ".tsv",
    ".yaml",
    ".yml",
}
_SENT |= {".model", ".spm", ".bpe", ".codes", ".vocab", ".tiktoken", ".jinja", ".png", ".jpg", ".jpeg", ".gif", ".webp"}
_NAMES = {"LICENSE", "LICENCE", "NOTICE", "CITATION", "COPYING"}
_NETWORK = re.compile(rb"\s*(<\?xml[^>]*\?>\s*)?<net\s[^>]*>")  # how OpenVINO begins a model
_PICKLED = (b"PK\x03\x04", b"\x80")  # how PyTorch and pickle begin
_KEPT = {".gitattributes"}  # the Hub's own
_STATUS = {
    401: "the Hub does not know this token: log in with `hf auth login`, or set HF_TOKEN",
    402: "the Hub asks for payment: see your account's settings",
    403: "this token may not write there: use one with write permission, and a name of your own or your organisation's",
    404: "the Hub shows no such repository to this token: use one with write permission",
    412: "somebody else changed the repository meanwhile: look at it, and publish again",
}


@dataclass(frozen=True)
class Publication:
    """What was published, or would be.

    Attributes:
        repo_id: Name on the Hub.
        revision: The branch.
        url: Its page on the Hub.
        commit: Hash of the commit; None after a dry run.
        files: Name of each file in the repository, to its size in bytes.
        card: The model card.
    """

    repo_id: str
    revision: str
    url: str
    commit: str | None
    files: dict[str, int]
    card: str


def send(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """Send a folder in the portable form with its model card, in one commit.

    Takes a folder that :func:`portable_folder` has checked and the arguments of :func:`st_dimreduce.publish`, and
    raises as it does.
    """
    files, card = _contents(folder, repo_id)
    commit = None if dry_run else _send(files, repo_id, private, token, revision)
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    branch = revision or constants.DEFAULT_REVISION
    url = f"{constants.ENDPOINT}/{repo_id}" + (f"/tree/{revision}" if revision else "")
    return Publication(repo_id, branch, url, commit.oid if commit else None, sizes, card)


def check_address(repo_id: str, token: str | None) -> None:
    """Check a name on the Hub and a token, before anything is made or sent.

    Raises:
        ValueError: If either is none.
    """
    _check_repo_id(repo_id)
    if token is not None and not re.fullmatch(r"[!-~]+", token):  # which an error further on would print
        raise UserError("the token is not one: expected a word, such as hf_...")


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
        reason = "" if "/" in repo_id else " It has no user or organisation."
    except HFValidationError as error:
        reason = f" {error}"
    if reason:
        raise UserError(f"{repo_id!r} is no name on the Hub: give one such as 'user/my-model'.{reason}")


@contextmanager
def portable_folder(
    model: SentenceTransformer | str | os.PathLike[str], figures: dict[str, Any] | None
) -> Iterator[Path]:
    """Yield the folder of a model in the portable form, which may be sent: its own, or a temporary one.

    Raises:
        ValueError: If the model or folder cannot be published.
    """
    if isinstance(model, SentenceTransformer):
        with tempfile.TemporaryDirectory() as work:
            save_portable(model, Path(work) / "model", figures=figures)
            yield Path(work) / "model"
        return
    if figures is not None:
        raise UserError(f"figures are for a model in no folder: {os.fspath(model)} says in {RECORD} what was measured")
    _check_folder(Path(model))
    yield Path(model)


def _check_folder(folder: Path) -> None:
    missing = [name for name in (MODULES, RECORD) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} holds no {' and no '.join(missing)}: give a reduced model's folder (save_portable)")
    problems = unportable(list(load_model(folder)))
    problems += [str(problem) for problem in check(folder).problems if problem.fixable]
    if problems:
        raise UserError(f"{folder} is not in the portable form, write it with save_portable: {'; '.join(problems)}")
    _files(folder)


def _contents(folder: Path, repo_id: str) -> tuple[dict[str, Path | bytes], str]:
    """Return the files to send, by their names in the repository, and the card among them."""
    files: dict[str, Path | bytes] = {**_files(folder)}
    picture = b""
    content, serving = read_object(folder / RECORD), Serving.of(folder)
    try:
        record = FitRecord.from_dict(content)
        if record.figures and record.figures.get("rows"):
            picture = _picture(record.figures)
        sizes = content["in_features"], content["out_features"]
        card = model_card(record, *sizes, repo_id, picture=bool(picture), serving=serving)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / RECORD} is not as st_dimreduce writes it: {error!r}") from error
    own = read_text(folder / CARD) if CARD in files else MARK
    if MARK not in own:
        return files, own
    if picture:
        files[PICTURE] = picture
    return {**files, CARD: card.encode()}, card


def _files(folder: Path) -> dict[str, Path]:
    """Return the files in a folder that may be sent, by their names in the repository."""
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} leads out of its folder: replace it with what it points to")
        if path.is_dir():
            continue
        if not path.is_file() or not name.isprintable():
            raise UserError(f"{printable(str(path))} is no file that can be published: take it out")
        if path.suffix not in _SENT and path.name not in _NAMES and not _is_openvino(path):
            raise UserError(f"{path} may run code when it is loaded: take it out, weights belong in safetensors")
        files[name] = path
    return files


def _is_openvino(path: Path) -> bool:
    """Whether a file holds the weights of an OpenVINO model, which lies beside it under the same name."""
    described = path.with_suffix(".xml")
    if path.suffix != ".bin" or path.name.startswith("pytorch_model") or not described.is_file():
        return False
    with described.open("rb") as text, path.open("rb") as weights:
        return _NETWORK.match(text.read(4_096)) is not None and not weights.read(4).startswith(_PICKLED)


def _picture(figures: dict[str, Any]) -> bytes:
    """Return the plot of the figures; nothing where matplotlib is missing: the card says the same in a table."""
    with suppress(ModuleNotFoundError), tempfile.TemporaryDirectory() as work:
        from st_dimreduce.evaluation.plots import plot_quality  # noqa: PLC0415, needs an optional dependency

        plot_quality(figures, Path(work, PICTURE))
        return Path(work, PICTURE).read_bytes()
    return b""


def _send(
    files: dict[str, Path | bytes], repo_id: str, private: bool | None, token: str | None, revision: str | None
) -> CommitInfo:
    if not (token or get_token()):
        raise PermissionError("no token to publish with: log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=token, library_name="st_dimreduce", library_version=version("st_dimreduce"))
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        try:
            there, missing = api.model_info(repo_id, revision=revision), False
        except RevisionNotFoundError:
            there, missing = api.model_info(repo_id), True
        stale = _replaced(there, repo_id, private) - set(files)
        if missing and revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        # Not upload_folder: where it uploads through Xet it may split a folder over several commits.
        operations: list[Any] = [CommitOperationDelete(name, is_folder=False) for name in sorted(stale)]
        operations += [CommitOperationAdd(name, file) for name, file in files.items()]
        message = f"Publish with st_dimreduce {version('st_dimreduce')}"
        return api.create_commit(
            repo_id, operations, commit_message=message, revision=revision, parent_commit=there.sha
        )
    except (FileExistsError, PermissionError):
        raise
    except Exception as error:  # the client passes on what its parts raise, which is not all of one kind
        raise _explained(error, repo_id) from error


def _replaced(there: ModelInfo, repo_id: str, private: bool | None) -> set[str]:
    """Return the files of the model that will be replaced, if it may be."""
    if private and not there.private:
        raise PermissionError(
            f"{repo_id} is there and public: make it private on the Hub first, or choose another name"
        )
    names = {file.rfilename for file in there.siblings or []} - _KEPT
    if names - {CARD} and RECORD not in names:
        raise FileExistsError(f"{repo_id} holds files and no {RECORD}: choose another name, this is never replaced")
    return names


def _explained(error: Exception, repo_id: str) -> Exception:
    what = f"publishing {repo_id} at {constants.ENDPOINT} failed"
    if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
        return UserError(f"{what}, nothing was changed: {' '.join(str(error).split())}")  # the Hub refused the card
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in _STATUS:
        kind = ConnectionError if status == 412 else PermissionError
        return kind(f"{what}, nothing was changed: {_STATUS[status]}")
    reason = " ".join(str(error.__cause__ or error).split()).rstrip(".") or type(error).__name__
    done = "it holds all that it held before, or all of the model; the same call again completes it"
    return ConnectionError(f"{what}: {reason}; {done}")
