"""A cache of embeddings in a folder: texts that a model has encoded once are not encoded again."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from st_dimreduce.errors import UserError
from st_dimreduce.files import check_place, new_file
from st_dimreduce.texts import digest_of

_FORMAT = "st_dimreduce embeddings 2"


class Cache:
    """A folder of ``.npz`` files, each named after what was encoded, and with what.

    Several processes may share the folder: a file appears when it is complete, and two that write the same file write
    the same content. Nothing is ever removed from it.

    Args:
        folder: The folder; made when the first file is written.

    Raises:
        NotADirectoryError: If it is a file.
        PermissionError: If it cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder).absolute()
        if self._folder.exists() and not self._folder.is_dir():
            raise NotADirectoryError(f"the cache {folder} is a file: give a folder")
        check_place(self._folder / "embeddings.npz")
        self._writes = True

    def get(self, key: Sequence[str], texts: Sequence[str], encode: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the embeddings of texts from the cache, or encode them and add them to it.

        A file that is damaged or of another kind is encoded again, with a warning. If the cache cannot be written, a
        warning says so once, and nothing more is added.

        Args:
            key: What the embeddings depend on besides the texts: the digest of the model, the prompt, the role.
            texts: The texts, n of them.
            encode: Encodes them.

        Returns:
            Float array of shape (n, d).
        """
        path = self._folder / f"{digest_of([_FORMAT, *key, *texts])}.npz"
        if path.exists():
            try:
                return _read(path, len(texts))
            except (OSError, ValueError, LookupError, EOFError, BadZipFile) as error:
                warnings.warn(f"{path} is damaged, or not a file of the cache ({error}): encoding again", stacklevel=2)
        rows = encode()
        if self._writes:
            try:
                with new_file(path) as written, written.open("wb") as file:
                    np.savez(file, rows=rows)
            except OSError as error:  # what was encoded must not be lost with it
                self._writes = False
                warnings.warn(f"the embeddings cannot be written to the cache: {error}", stacklevel=2)
        return rows


def _read(path: Path, count: int) -> np.ndarray:
    with np.load(path, allow_pickle=False) as content:  # which checks the CRC-32 of the array
        rows = content["rows"]
    if rows.ndim != 2 or len(rows) != count or rows.dtype.kind != "f":
        raise UserError(f"it holds {rows.dtype} of shape {rows.shape}, expected {count} vectors")
    return rows
