"""Reading files of unknown origin: within bounds, without running anything or following a path out of its folder."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

from st_dimreduce.errors import UserError

_MOST_BYTES = 16 * 2**20  # of a JSON file that describes a model, and of the header of a safetensors file
_MOST_FILES = 100_000  # in a model's folder
# What begins markup is shown as another letter; a pipe would end a cell of a table.
_HARMLESS = str.maketrans("<>`[]|\\&", "()'()//+")
_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
Shapes = dict[str, tuple[int, ...]]


def read_json(path: Path, most_bytes: int = _MOST_BYTES) -> Any:
    """Read a JSON file that describes a model.

    Raises:
        UserError: If it is missing, too large, not JSON in UTF-8, nested too deeply, or holds NaN or Infinity.
    """
    try:
        return json.loads(_read_bytes(path, most_bytes).decode("utf-8"), parse_constant=_refuse)
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is not JSON in UTF-8: {' '.join(str(error).split())}") from error


def read_text(path: Path, errors: str = "strict") -> str:
    """Read a text file in UTF-8, such as a model card; ``errors`` as for :meth:`bytes.decode`.

    Raises:
        UserError: If it is missing, not a regular file, too large, or not UTF-8.
    """
    try:
        return _read_bytes(path, _MOST_BYTES).decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8") from error


def _read_bytes(path: Path, most: int) -> bytes:
    """Read a whole file, if it is a regular one: any other may never end, or never begin."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f"{path} is not a file")
        if about.st_size > most:
            raise UserError(f"{path} has {about.st_size:,} bytes: expected at most {most:,}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def read_object(path: Path, most_bytes: int = _MOST_BYTES) -> dict[str, Any]:
    """Read a JSON file as :func:`read_json`, and raise ``UserError`` too if it does not hold an object."""
    content = read_json(path, most_bytes)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {short(content)}: expected an object of settings")
    return content


def read_shapes(path: Path) -> Shapes:
    """Return the shapes of the tensors in a safetensors file, without reading their values.

    Raises:
        UserError: If it is not a complete safetensors file.
    """
    with _safetensors(path), safe_open(path, "np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, no mapping


def read_tensors(path: Path, expected: Shapes) -> dict[str, np.ndarray]:
    """Read a safetensors file that should hold tensors of these shapes, as finite float32 arrays.

    Raises:
        UserError: If it is not a complete safetensors file, or holds anything else.
    """
    shapes = read_shapes(path)
    if shapes != expected:
        raise UserError(f"{path} holds {short(shapes)}, config.json asks for {expected}, of floats")
    tensors = {}
    with _safetensors(path):
        for name, tensor in deserialize(path.read_bytes()):
            values = _floats(tensor["data"], tensor["dtype"])
            if values is None:
                raise UserError(f"{path} holds {name} as {tensor['dtype']}: expected floats")
            if not np.isfinite(values).all():
                raise UserError(f"{path} holds values that are not finite")
            tensors[name] = values.reshape(shapes[name])
    return tensors


def read_arrays(
    path: str | os.PathLike[str], layout: str, names: Collection[str], what: str, writer: str
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Read a safetensors file of our own that holds arrays of these names, and its metadata.

    Args:
        path: The file.
        layout: What its metadata says under ``"format"``.
        names: The names of its arrays.
        what: What it is, such as ``"summary"``, for the message.
        writer: What writes it, for the message.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If it is anything else.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, a file is not a mapping
    except (SafetensorError, TypeError, KeyError) as error:  # the last two: a type that NumPy lacks
        raise UserError(f"{path} is not a {what}: expected a file written by {writer} ({error})") from error
    if metadata.get("format") != layout or arrays.keys() != set(names):
        raise UserError(f"{path} is not a {what}: expected a file written by {writer}")
    return metadata, arrays


def _floats(data: Any, dtype: str) -> np.ndarray | None:
    """Return the values as float32; None unless they are floats of 16, 32 or 64 bits."""
    if dtype == "BF16":  # the upper half of a float32, a type that NumPy lacks
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # what overflows is refused as not finite
        return np.frombuffer(data, _FLOATS[dtype]).astype(np.float32) if dtype in _FLOATS else None


@contextmanager
def _safetensors(path: Path) -> Iterator[None]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is not a file")
        with path.open("rb") as file:
            if int.from_bytes(file.read(8), "little") > _MOST_BYTES:
                raise UserError(f"{path} is not a safetensors file: its header is longer than {_MOST_BYTES:,} bytes")
        yield
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a complete safetensors file: {' '.join(str(error).split())}") from error


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """Read weights that an older PyTorch pickled; whatever else a pickle may hold is refused.

    Raises:
        UserError: If it holds anything but weights by name, or is damaged.
    """
    import torch  # noqa: PLC0415, needed for this old form alone

    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch promises no particular one, and its text advises to run the file
        raise UserError(f"{path} is not a pickle of weights alone: refused, expected model.safetensors") from error
    if not isinstance(weights, dict) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise UserError(f"{path} holds other things than weights: expected model.safetensors")
    return {name: weight.detach().float().numpy() for name, weight in weights.items()}


def check_tree(root: Path) -> None:
    """Check every file of a model's folder, and of the folders in it, as :func:`stay_inside` does.

    Hidden folders are left out: nothing reads them.

    Raises:
        UserError: As :func:`stay_inside`, or if there are too many files.
    """
    count = 0
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        count += len(folders) + len(files)
        if count > _MOST_FILES:
            raise UserError(f"{root} holds more than {_MOST_FILES:,} files: expected the folder of a model")
        stay_inside(root, Path(place))


def stay_inside(root: Path, folder: Path) -> None:
    """Refuse links in a folder that lead out of a model's root, and whatever is neither a file nor a folder.

    Links of the Hub's cache to its own files are followed. A pipe, a socket or a device would keep a reader waiting.

    Raises:
        UserError: If there is one; names it.
    """
    home = root.resolve()
    allowed = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    for path in [folder, *folder.iterdir()]:
        is_inside = any(Path(os.path.realpath(path)).is_relative_to(place) for place in allowed)
        if (path == folder or path.is_symlink()) and not is_inside:
            raise UserError(f"{printable(str(path))} is a link that leads out of the model's folder")
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{printable(str(path))} is neither a file nor a folder: take it out")


def check_relative(path: Any, where: str) -> None:
    """Refuse a path that may lead out of the model's folder, on whatever system.

    Raises:
        UserError: If it may.
    """
    parts = PureWindowsPath(path) if isinstance(path, str) else None  # which also knows every separator of POSIX
    if parts is None or parts.anchor or ".." in parts.parts or not str(path).isprintable():
        raise UserError(f"{where} names the path {short(path)}: expected one inside the model's folder")


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


def printable(text: str) -> str:
    """Return a text with what a terminal would act on, and all else that cannot be seen, shown as escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def harmless(text: str) -> str:
    """Return a text, in one line, that means nothing in Markdown and HTML."""
    return printable(" ".join(text.split())).translate(_HARMLESS).replace("://", ": //")


def short(value: Any) -> str:
    """Return the beginning of what a file says, for a message."""
    text = (
        f"{value!r:.200}" if not isinstance(value, (int, float)) else f"{value:.6g}" if abs(value) < 1e100 else "huge"
    )
    return " ".join(text.split())
