"""Rewriting a model's folder in place, in the layout that every reader knows."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from st_dimreduce.files import new_folder
from st_dimreduce.models.folder import read_layout
from st_dimreduce.portable.layout import MODULES, rewrite
from st_dimreduce.untrusted import stay_inside


def fix(path: str | os.PathLike[str]) -> None:
    """Rewrite a model's folder in place, in the layout that every reader knows, as far as that can express the model.

    The model is not loaded and gives the same vectors as before. Files that belong to no module stay as they are, and
    so does what the layout cannot express: :func:`st_dimreduce.check` says afterwards what that is. The new folder
    replaces the old one when it is complete.

    Args:
        path: The folder of a model.

    Raises:
        ValueError: If the folder is no model or is damaged.
        OSError: If the folder cannot be written.
    """
    root = Path(path).absolute()
    parts = read_layout(root, trust_remote_code=True)
    if not (root / MODULES).exists():
        raise ValueError(f"{root} has no {MODULES}: save the model with save_portable")
    for place, _, _ in os.walk(root):
        stay_inside(root, Path(place))
    with new_folder(root, overwrite=True) as folder:
        shutil.copytree(root, folder, dirs_exist_ok=True)
        rewrite(folder, parts)
