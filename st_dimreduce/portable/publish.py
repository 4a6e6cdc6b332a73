"""Publishing a reduced model on the Hugging Face Hub: all of it in one commit, or nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import RevisionNotFoundError
from huggingface_hub.utils import HFValidationError, validate_repo_id
from sentence_transformers import SentenceTransformer

from st_dimreduce.enums import Variant
from st_dimreduce.errors import UserError
from st_dimreduce.portable.card import MARK, PICTURE, model_card
from st_dimreduce.portable.check import check, unportable
from st_dimreduce.portable.export import export
from st_dimreduce.portable.graphs import EXPORT, graphs_of
from st_dimreduce.portable.layout import CARD, MODULES
from st_dimreduce.portable.save import save_portable
from st_dimreduce.portable.serving import Serving
from st_dimreduce.record import RECORD, FitRecord
from st_dimreduce.untrusted import check_tree, printable, read_object, read_text

# What a model's folder may hold: data and texts. Anything else may run code when it is loaded.
_SENT = {".json", ".jsonl", ".safetensors", ".onnx", ".onnx_data", ".md", ".txt", ".csv", ".tsv", ".yaml", ".yml"}
_SENT |= {".model", ".spm", ".bpe", ".codes", ".vocab", ".tiktoken", ".jinja", ".png", ".jpg", ".jpeg", ".gif", ".webp"}
_NAMES = {"LICENSE", "LICENCE", "NOTICE", "CITATION", "COPYING"}
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


def publish(
    model: SentenceTransformer | str | os.PathLike[str],
    repo_id: str,
    *,
    onnx: bool | Sequence[Variant | str] = False,
    figures: dict[str, Any] | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """Publish a reduced model on the Hugging Face Hub, in the portable form, with its model card.

    Everything goes in one commit: after a failure the branch holds all that it held before or all of the new model,
    and the same call again completes it. Files of a reduced model that was there before are deleted where the new one
    does not replace them, so that none is loaded with the new model; the history keeps them.

    Args:
        model: A reduced model, or the folder of one that :func:`save_portable` or ``st-dimreduce reduce`` wrote. From
            a folder everything is sent but hidden files; a file that may run code when it is loaded, or is of no kind
            that models consist of, is refused. A README.md of your own is sent unchanged.
        repo_id: Name to publish under, ``"user/name"``. Made if it is not there.
        onnx: Whether to make and send ``onnx/model.onnx`` and ``export.json`` too, as :func:`st_dimreduce.export` does;
            or the smaller graphs to send with them: ``"fp16"``, ``"int8"``. Defaults to False.
        figures: What was measured of a model in memory, a :meth:`st_dimreduce.Comparison.to_dict`, for its card.
        private: Whether only you may see it. Defaults to None: as the account's settings say.
        token: A token that may write. Defaults to None: ``HF_TOKEN``, or the one you logged in with.
        revision: Branch to publish to, made from ``main`` if it is not there. Defaults to None: ``main``.
        dry_run: Return what would be published; send nothing, make nothing. Defaults to False.

    Returns:
        What was published.

    Raises:
        UserError: If the name is invalid, or the model or folder cannot be published or exported. Nothing is sent.
        MissingExtraError: If a graph is asked for and the extra ``onnx`` is not installed. Nothing is sent.
        FileExistsError: If the repository holds something other than a reduced model: that is never replaced.
        PermissionError: If the token does not suffice, or a private model would go where everybody can see it.
        ConnectionError: If the Hub cannot be reached, or the connection breaks.
    """
    _check_address(repo_id, token)
    with tempfile.TemporaryDirectory() as work:
        folder = _portable_folder(model, figures, Path(work, "portable"))
        if onnx is not False:
            folder = _with_graphs(folder, () if onnx is True else onnx, Path(work))
        files, card = _contents(folder, repo_id)
        commit = None if dry_run else _send(files, repo_id, private, token, revision)
        sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    url = f"{constants.ENDPOINT}/{repo_id}" + (f"/tree/{revision}" if revision else "")
    return Publication(repo_id, revision or constants.DEFAULT_REVISION, url, commit, sizes, card)


def _check_address(repo_id: str, token: str | None) -> None:
    """Check a name on the Hub and a token, before anything is made or sent."""
    try:
        validate_repo_id(repo_id)
        reason = "" if "/" in repo_id else " It has no user or organisation."
    except HFValidationError as error:
        reason = f" {error}"
    if reason:
        raise UserError(f"{repo_id!r} is not a name on the Hub: give one such as 'user/my-model'.{reason}")
    if token is not None and not re.fullmatch(r"[!-~]+", token):  # which an error further on would print
        raise UserError("the token is not one: expected a word, such as hf_...")


def _portable_folder(
    model: SentenceTransformer | str | os.PathLike[str], figures: dict[str, Any] | None, work: Path
) -> Path:
    """Return the folder of a model in the portable form: its own, checked, or one made for a model in memory."""
    if isinstance(model, SentenceTransformer):
        save_portable(model, work, figures=figures)
        return work
    folder = Path(model)
    if figures is not None:
        raise UserError(f"figures are for a model in no folder: {folder} says in {RECORD} what was measured")
    missing = [name for name in (MODULES, RECORD) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} holds no {' and no '.join(missing)}: give a reduced model's folder (save_portable)")
    found = check(folder)
    if problems := [*unportable(found), *(str(problem) for problem in found.problems if problem.fixable)]:
        raise UserError(f"{folder} is not in the portable form, write it with save_portable: {'; '.join(problems)}")
    _files(folder)
    return folder


def _with_graphs(folder: Path, variants: Sequence[Variant | str], work: Path) -> Path:
    """Return a folder that holds a model's files and its graphs."""
    if there := graphs_of(folder):
        raise UserError(f"{folder} holds {there[0].where}: publish it as it is, or take its graphs out")
    wanted = dict.fromkeys([Variant.FP32, *map(Variant, variants)])
    export(folder, work / "export", variants=list(wanted))
    whole = Path(shutil.copytree(folder, work / "whole"))
    for name in ("onnx", EXPORT):
        shutil.move(work / "export" / name, whole / name)
    return whole


def _contents(folder: Path, repo_id: str) -> tuple[dict[str, Path | bytes], str]:
    """Return the files to send, by their names in the repository, and the card among them."""
    files: dict[str, Path | bytes] = {**_files(folder)}
    content, serving, picture = read_object(folder / RECORD), Serving.of(folder), b""
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
    return {**files, **({PICTURE: picture} if picture else {}), CARD: card.encode()}, card


def _files(folder: Path) -> dict[str, Path]:
    """Return the files in a folder that may be sent, by their names in the repository."""
    check_tree(folder)
    files: dict[str, Path] = {}
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        name = path.relative_to(folder).as_posix()
        if re.search(r"(^|/)\.", name):
            continue
        if not name.isprintable() or (path.suffix not in _SENT and path.name not in _NAMES):
            raise UserError(
                f"{printable(str(path))} may run code when it is loaded: take it out, weights belong in safetensors"
            )
        files[name] = path
    return files


def _picture(figures: dict[str, Any]) -> bytes:
    """Return the plot of the figures; nothing where matplotlib is missing: the card has them in a table too."""
    with suppress(ModuleNotFoundError), tempfile.TemporaryDirectory() as work:
        from st_dimreduce.evaluation.plots import plot_quality  # noqa: PLC0415, needs an optional dependency

        plot_quality(figures, Path(work, PICTURE))
        return Path(work, PICTURE).read_bytes()
    return b""


def _send(
    files: dict[str, Path | bytes], repo_id: str, private: bool | None, token: str | None, revision: str | None
) -> str:
    """Send the files in one commit, which also deletes the others of the model before; return its hash."""
    if not (token or get_token()):
        raise PermissionError("no token to publish with: log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=token, library_name="st_dimreduce", library_version=version("st_dimreduce"))
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        try:
            there = api.model_info(repo_id, revision=revision)
        except RevisionNotFoundError:
            there = api.model_info(repo_id)
        names = {file.rfilename for file in there.siblings or []} - {".gitattributes"}  # the Hub's own
        if private and not there.private:
            raise PermissionError(
                f"{repo_id} is there and public: make it private on the Hub first, or choose another name"
            )
        if names - {CARD} and RECORD not in names:
            raise FileExistsError(f"{repo_id} holds files and no {RECORD}: choose another name, this is never replaced")
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        # Not upload_folder, which may split a folder over several commits where it uploads through Xet.
        operations: list[Any] = [CommitOperationDelete(name, is_folder=False) for name in sorted(names - set(files))]
        operations += [CommitOperationAdd(name, file) for name, file in files.items()]
        message = f"Publish with st_dimreduce {version('st_dimreduce')}"
        done = api.create_commit(
            repo_id, operations, commit_message=message, revision=revision, parent_commit=there.sha
        )
    except (FileExistsError, PermissionError):
        raise
    except Exception as error:  # the client passes on what its parts raise, which is not all of one kind
        raise _explained(error, repo_id) from error
    return done.oid


def _explained(error: Exception, repo_id: str) -> Exception:
    """Return an error of the client as one line that says what to do, and what the repository holds now."""
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
