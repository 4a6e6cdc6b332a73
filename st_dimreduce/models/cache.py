"""A cache of embeddings in a folder: texts that a model has encoded once need not be encoded again."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from st_dimreduce.errors import UserError
from st_dimreduce.files import check_place, new_file
from st_dimreduce.texts import digest_of

_FORM = "st_dimreduce embeddings 1"
_DIGEST = 32  # bytes of the SHA-256 behind the array, which readers of .npy do not look at


class Cache:
    """A folder of embeddings, each file named after what was encoded, and with what.

    A file is a ``.npy`` array with its SHA-256 behind it. Several processes may share the folder: a file appears when
    it is complete, and two that write the same one write the same. Nothing is ever removed from it.

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
        check_place(self._folder / "embeddings.npy")
        self._writes = True

    def get(
        self, model: str, prompt: str, role: str, texts: Sequence[str], encode: Callable[[], np.ndarray]
    ) -> np.ndarray:
        """Return the embeddings of texts: those of the cache, or encoded and kept there.

        A file that is damaged or of another kind is encoded again, with a warning, as is one that cannot be written.

        Args:
            model: Digest of the model's weights and settings.
            prompt: What is put before each text.
            role: What the texts are encoded as.
            texts: The texts, n of them.
            encode: Encodes them.

        Returns:
            Float array of shape (n, d).
        """
        path = self._folder / f"{digest_of([_FORM, model, prompt, role, *texts])}.npy"
        if path.exists():
            try:
                return _read(path, len(texts))
            except (OSError, ValueError) as error:
                warnings.warn(f"{path} is no file of the cache, or damaged ({error}): encoding again", stacklevel=2)
        rows = encode()
        if self._writes:
            try:
                _write(path, rows)
            except OSError as error:  # what was encoded must not be lost with it
                self._writes = False
                warnings.warn(f"the embeddings are not kept in the cache: {error}", stacklevel=2)
        return rows


def _read(path: Path, count: int) -> np.ndarray:
    content = path.read_bytes()
    array, digest = content[:-_DIGEST], content[-_DIGEST:]
    if hashlib.sha256(array).digest() != digest:
        raise UserError("its digest is another")
    rows = np.load(io.BytesIO(array), allow_pickle=False)
    if rows.ndim != 2 or len(rows) != count or rows.dtype.kind != "f":
        raise UserError(f"it holds {rows.dtype} of shape {rows.shape}, expected {count} vectors")
    return rows


def _write(path: Path, rows: np.ndarray) -> None:
    array = io.BytesIO()
    np.save(array, rows, allow_pickle=False)
    with new_file(path) as written:
        written.write_bytes(array.getvalue() + hashlib.sha256(array.getvalue()).digest())
