"""Publishing a reduced model on the Hugging Face Hub, with graphs for the readers that take them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from st_dimreduce.enums import Addition, Variant
from st_dimreduce.errors import UserError
from st_dimreduce.portable.export import export
from st_dimreduce.portable.graphs import EXPORT, graphs_of
from st_dimreduce.portable.hub import Publication, check_address, portable_folder, send

_GRAPHS = "onnx"


def publish(
    model: SentenceTransformer | str | os.PathLike[str],
    repo_id: str,
    *,
    with_: Sequence[Addition | str] = (),
    variants: Sequence[Variant | str] = (),
    figures: dict[str, Any] | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """Publish a reduced model on the Hugging Face Hub, in the portable form, with its model card.

    Everything goes in one commit: whatever happens on the way, the branch holds all that it held before or all of the
    new model, and the same call again completes it. Files of a reduced model that was there before are deleted where
    the new one does not replace them, so that none is loaded with the new model; the history keeps them.

    Args:
        model: A reduced model, or the folder of one that :func:`save_portable` or ``st-dimreduce reduce`` wrote. From
            a folder everything is sent but hidden files; a file that may run code when it is loaded, or is of no kind
            that models consist of, is refused. A README.md of your own is sent as it is.
        repo_id: Name to publish under, ``"user/name"``. Made if it is not there.
        with_: What to make and send besides: ``"onnx"`` for ``onnx/model.onnx`` and ``export.json`` of
            :func:`st_dimreduce.export`, which readers of graphs look for in the same repository. Defaults to nothing.
        variants: Smaller graphs to send as well: ``"fp16"``, ``"int8"``, as in :func:`st_dimreduce.export`. Defaults
            to none.
        figures: What was measured of a model in memory, a :meth:`st_dimreduce.Comparison.to_dict`, for its card.
        private: Whether only you may see it. Defaults to None: as the account's settings say.
        token: A token that may write. Defaults to None: ``HF_TOKEN``, or the one you logged in with.
        revision: Branch to publish to, made from ``main`` if it is not there. Defaults to None: ``main``.
        dry_run: Return what would be published; send nothing, make nothing. Defaults to False.

    Returns:
        What was published.

    Raises:
        ValueError: If the name is none, or the model or folder cannot be published or exported. Nothing is sent.
        ModuleNotFoundError: If a graph is asked for and the extra ``onnx`` is not installed. Nothing is sent.
        FileExistsError: If the repository holds something that is no reduced model: that is never replaced. Nothing
            is changed.
        PermissionError: If the token does not suffice, or a private model would go where everybody can see it.
        ConnectionError: If the Hub cannot be reached, or the connection breaks.
    """
    check_address(repo_id, token)
    wanted = [Addition(each) for each in ([with_] if isinstance(with_, str) else with_)]
    if variants and not wanted:
        raise UserError("variants are of a graph, and none is sent: ask for with_='onnx' too")
    with portable_folder(model, figures) as folder:
        if not wanted:
            return send(folder, repo_id, private=private, token=token, revision=revision, dry_run=dry_run)
        with _with_graphs(folder, variants) as whole:
            return send(whole, repo_id, private=private, token=token, revision=revision, dry_run=dry_run)


@contextmanager
def _with_graphs(folder: Path, variants: Sequence[Variant | str]) -> Iterator[Path]:
    """Yield a temporary folder that holds a model's files and its graphs.

    Raises:
        ValueError: If the folder holds graphs already, or the model cannot be exported.
    """
    if there := graphs_of(folder):
        raise UserError(f"{folder} holds {there[0].where}: publish it as it is, or take its graphs out")
    with tempfile.TemporaryDirectory() as work:
        exported, whole = Path(work, "export"), Path(work, "model")
        export(folder, exported, variants=list(dict.fromkeys([Variant.FP32, *map(Variant, variants)])))
        shutil.copytree(folder, whole, copy_function=_link_or_copy)
        shutil.move(exported / _GRAPHS, whole / _GRAPHS)
        shutil.move(exported / EXPORT, whole / EXPORT)
        yield whole


def _link_or_copy(source: str, target: str) -> None:
    """Give a file a second name, which takes no space, or copy it where the disk is another."""
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
