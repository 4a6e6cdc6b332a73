"""Files that nobody vouches for: read within bounds, nothing in them run or followed out of their folder."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_MOST_BYTES = 16 * 2**20  # of a JSON file that describes a model, and of what precedes the numbers in safetensors
Shapes = dict[str, tuple[int, ...]]


def read_json(path: Path) -> Any:
    """Read a JSON file that describes a model.

    Raises:
        ValueError: If it is missing, too large, no UTF-8, no JSON, nested too deeply, or has numbers that JSON has not.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise ValueError(f"{path} is no file")
        if about.st_size > _MOST_BYTES:
            raise ValueError(f"{path} has {about.st_size:,} bytes: expected at most {_MOST_BYTES:,}")
        return json.loads(path.read_bytes().decode("utf-8"), parse_constant=_refuse)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    except ValueError as error:
        known = str(error) if str(error).startswith(str(path)) else f"{path} is no JSON in UTF-8: {error}"
        raise ValueError(" ".join(known.split())) from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; raises as :func:`read_json`, also if it holds anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {short(content)}: expected an object of settings")
    return content


def read_shapes(path: Path) -> Shapes:
    """Return the shapes of the tensors in a safetensors file, without reading their numbers.

    Raises:
        ValueError: If it is no complete safetensors file.
    """
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, no mapping


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; raises as :func:`read_shapes`."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"{path} is no file")
        with path.open("rb") as file:
            if int.from_bytes(file.read(8), "little") > _MOST_BYTES:
                raise ValueError(f"{path} is no safetensors file: its header is longer than {_MOST_BYTES:,} bytes")
        with safe_open(path, "pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no complete safetensors file: {' '.join(str(error).split())}") from error


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Read the weights that an older PyTorch pickled, and nothing else that a pickle may say.

    Raises:
        ValueError: If it holds anything but weights by name, or is damaged.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch promises none in particular, and advises to run what is in the file
        raise ValueError(f"{path} is no pickle of weights alone: refused, expected model.safetensors") from error
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise ValueError(f"{path} holds other things than weights: expected model.safetensors")
    return weights


def stay_inside(root: Path, folder: Path) -> None:
    """Refuse links in a folder that lead out of its root, but for those of the Hub's cache to its own files.

    Raises:
        ValueError: If there is one; names it.
    """
    home = root.resolve()
    allowed = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    with os.scandir(folder) as files:
        for path in [folder, *(Path(file) for file in files if file.is_symlink())]:
            if not any(_resolved(path).is_relative_to(place) for place in allowed):
                raise ValueError(f"{path} is a link that leads out of the model's folder")


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
    if parts is None or parts.anchor or ".." in parts.parts or "\0" in str(path):
        raise ValueError(f"{where} names the path {short(path)}: expected one inside the model's folder")


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


def short(value: Any) -> str:
    """Return the beginning of what a file says, for a message."""
    text = (
        f"{value!r:.200}" if not isinstance(value, (int, float)) else f"{value:.6g}" if abs(value) < 1e100 else "huge"
    )
    return " ".join(text.split())
