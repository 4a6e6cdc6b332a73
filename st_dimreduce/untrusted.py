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
        ValueError: If it is missing, too large, no UTF-8, no JSON, nested too deeply, or has numbers that JSON has not.
    """
    try:
        return json.loads(_read_bytes(path, most_bytes).decode("utf-8"), parse_constant=_refuse)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply") from error
    except ValueError as error:
        known = str(error) if str(error).startswith(str(path)) else f"{path} is no JSON in UTF-8: {error}"
        raise UserError(" ".join(known.split())) from error


def read_text(path: Path, errors: str = "strict") -> str:
    """Read a file of text in UTF-8, such as a model card; ``errors`` as for :meth:`bytes.decode`.

    Raises:
        ValueError: If it is missing, no regular file, too large, or no UTF-8.
    """
    try:
        return _read_bytes(path, _MOST_BYTES).decode("utf-8", errors)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8") from error


def _read_bytes(path: Path, most: int) -> bytes:
    """Read a whole file, if it is a regular one: any other may never end, or never begin."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise UserError(f"{path} is no file")
    if about.st_size > most:
        raise UserError(f"{path} has {about.st_size:,} bytes: expected at most {most:,}")
    return path.read_bytes()


def read_object(path: Path, most_bytes: int = _MOST_BYTES) -> dict[str, Any]:
    """Read a JSON file that holds an object; raises as :func:`read_json`, also if it holds anything else."""
    content = read_json(path, most_bytes)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {short(content)}: expected an object of settings")
    return content


def read_shapes(path: Path) -> Shapes:
    """Return the shapes of the tensors in a safetensors file, without reading their values.

    Raises:
        ValueError: If it is no complete safetensors file.
    """
    with _safetensors(path), safe_open(path, "np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, no mapping


def read_tensors(path: Path, expected: Shapes) -> dict[str, np.ndarray]:
    """Read a safetensors file that should hold tensors of these shapes, as finite float32 arrays.

    Raises:
        ValueError: If it is no complete safetensors file, or holds anything else.
    """
    shapes = read_shapes(path)
    if shapes != expected:
        raise UserError(f"{path} holds {short(shapes)}, config.json asks for {expected}, of floats")
    tensors = {}
    with _safetensors(path):
        for name, tensor in deserialize(path.read_bytes()):
            tensors[name] = _floats(tensor["data"], tensor["dtype"], shapes[name])
    for name, values in tensors.items():
        if values is None:
            raise UserError(f"{path} holds {name}, which is not of floats: config.json asks for {expected}, of floats")
        if not np.isfinite(values).all():
            raise UserError(f"{path} holds values that are not finite")
    return {name: values for name, values in tensors.items() if values is not None}


def read_arrays(
    path: str | os.PathLike[str], layout: str, names: Collection[str], what: str, writer: str
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Read a safetensors file of our own that holds arrays of these names, and what it says of them.

    Args:
        path: The file.
        layout: What its metadata says under ``"format"``.
        names: The names of its arrays.
        what: What it is, such as ``"summary"``, and
        writer: what wrote it, for the message.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is anything else.
    """
    try:
        with safe_open(path, "numpy") as file:
            said = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, a file is no mapping
    except (SafetensorError, TypeError, KeyError) as error:  # the last two: of a type that NumPy lacks
        raise UserError(f"{path} is no {what}: expected a file written by {writer} ({error})") from error
    if said.get("format") != layout or arrays.keys() != set(names):
        raise UserError(f"{path} is no {what}: expected a file written by {writer}")
    return said, arrays


def _floats(data: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the values as float32; None if they are no floats of 16, 32 or 64 bits."""
    if dtype == "BF16":  # the upper half of a float32, a type that NumPy lacks
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif dtype in _FLOATS:
        with np.errstate(over="ignore"):  # what overflows is refused as not finite
            values = np.frombuffer(data, _FLOATS[dtype]).astype(np.float32)
    else:
        return None
    return values.reshape(shape)


@contextmanager
def _safetensors(path: Path) -> Iterator[None]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is no file")
        with path.open("rb") as file:
            if int.from_bytes(file.read(8), "little") > _MOST_BYTES:
                raise UserError(f"{path} is no safetensors file: its header is longer than {_MOST_BYTES:,} bytes")
        yield
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no complete safetensors file: {' '.join(str(error).split())}") from error


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """Read the weights that an older PyTorch pickled, and nothing else that a pickle may hold.

    Raises:
        ValueError: If it holds anything but weights by name, or is damaged.
    """
    import torch  # noqa: PLC0415, needed for this old form alone

    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch promises no particular one, and its text advises to run the file
        raise UserError(f"{path} is no pickle of weights alone: refused, expected model.safetensors") from error
    if not isinstance(weights, dict) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise UserError(f"{path} holds other things than weights: expected model.safetensors")
    return {name: weight.detach().float().numpy() for name, weight in weights.items()}


def check_tree(root: Path) -> None:
    """Check every file of a model's folder, and of the folders in it, as :func:`stay_inside` does.

    Hidden folders are left out: nothing reads them.

    Raises:
        ValueError: As :func:`stay_inside`, or if there are too many files.
    """
    count = 0
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        count += len(folders) + len(files)
        if count > _MOST_FILES:
            raise UserError(f"{root} holds more than {_MOST_FILES:,} files: expected the folder of a model")
        stay_inside(root, Path(place))


def stay_inside(root: Path, folder: Path) -> None:
    """Refuse what a model's folder may not hold: links that lead out of its root, and what is no file and no folder.

    Links of the Hub's cache to its own files are followed. A pipe, a socket or a device would keep a reader waiting.

    Raises:
        ValueError: If there is one; names it.
    """
    home = root.resolve()
    allowed = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    with os.scandir(folder) as files:
        for path in [folder, *(Path(file) for file in files)]:
            is_inside = any(_resolved(path).is_relative_to(place) for place in allowed)
            if (path == folder or path.is_symlink()) and not is_inside:
                raise UserError(f"{printable(str(path))} is a link that leads out of the model's folder")
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise UserError(f"{printable(str(path))} is no file and no folder: take it out")


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a circle of links
        return Path()


def check_relative(path: Any, where: str) -> None:
    """Refuse a path that may lead out of the model's folder, on whatever system.

    Raises:
        ValueError: If it may.
    """
    parts = PureWindowsPath(path) if isinstance(path, str) else None  # which also knows every separator of POSIX
    if parts is None or parts.anchor or ".." in parts.parts or not str(path).isprintable():
        raise UserError(f"{where} names the path {short(path)}: expected one inside the model's folder")


def _refuse(constant: str) -> None:
    raise UserError(f"it holds {constant}")


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
