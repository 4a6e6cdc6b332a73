"""Rewriting a model's folder in place, in the layout that every reader knows."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from st_dimreduce.errors import UserError
from st_dimreduce.files import new_folder, write_json
from st_dimreduce.models.folder import read_layout
from st_dimreduce.models.load import load_model
from st_dimreduce.portable.check import reduced_size, unreduced
from st_dimreduce.portable.graphs import files_of, graphs_of
from st_dimreduce.portable.layout import MODULES, OLD_NAMES, is_head, name_sizes, rewrite
from st_dimreduce.portable.verify import check_vectors
from st_dimreduce.untrusted import read_json, stay_inside

ASIDE = ".unreduced"  # hidden, so that it is not published


def fix(path: str | os.PathLike[str], *, trust_remote_code: bool = False) -> None:
    """Rewrite a model's folder in place, in the layout that every reader knows, as far as that can express the model.

    Graphs of the unreduced model, which readers would take in place of its modules, go to the folder ``.unreduced``
    in it. Other files that belong to no module stay as they are, and so does what the layout cannot express:
    :func:`st_dimreduce.check` says afterwards what that is. The new folder replaces the old one when it is complete,
    and has been loaded and found to give the same vectors.

    Args:
        path: The folder of a model.
        trust_remote_code: Whether code that comes with the model may run, to compare its vectors. Defaults to False.

    Raises:
        ValueError: If the folder is no model, is damaged or cannot be loaded, or would give other vectors. Nothing is
            changed.
        OSError: If the folder cannot be written.
    """
    root = Path(path).resolve()
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
        rewrite(folder, parts)
        name_sizes(folder)
        for graph in unreduced(reduced_size(root, parts), graphs_of(root)):
            _set_aside(folder, graph.where)
        check_vectors(before, folder, trust_remote_code=trust_remote_code)


def _set_aside(root: Path, where: str) -> None:
    """Move a graph, and its weights beside it, to where no reader looks."""
    graph = root / where
    aside = root / ASIDE / Path(where).parent
    aside.mkdir(parents=True, exist_ok=True)
    for path in files_of(graph):
        if not (aside / path.name).exists():
            path.rename(aside / path.name)
    if graph.parent != root and not any(graph.parent.iterdir()):
        graph.parent.rmdir()
