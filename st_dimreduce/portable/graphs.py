"""Graphs in a model's folder, which some readers take in place of its modules: are they reduced?"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from st_dimreduce.errors import UserError
from st_dimreduce.untrusted import read_object, short

EXPORT = "export.json"  # what an export says of itself
FOLDERS = ("onnx", "openvino")  # where readers look for graphs
_ENDS = (".onnx", ".xml")


@dataclass(frozen=True)
class Graph:
    """A graph in a model's folder.

    Attributes:
        where: Its file, relative to the model's folder.
        tokens: Size of its token embeddings; None if it gives none, or it is not known what it gives.
        sentence: Size of its ``sentence_embedding``; None likewise.
    """

    where: str
    tokens: int | None
    sentence: int | None

    def is_reduced(self, out_features: int) -> bool:
        """Whether everything that it gives has the reduced size."""
        sizes = {size for size in (self.tokens, self.sentence) if size is not None}
        return sizes == {out_features}


def graphs_of(root: Path) -> list[Graph]:
    """Return the graphs in a model's folder, where readers look for them, in the order in which these do.

    Raises:
        ValueError: If ``export.json`` cannot be read.
    """
    places = [*sorted(root.glob("*.onnx")), *(path for name in FOLDERS for path in sorted((root / name).glob("*")))]
    said = read_object(root / EXPORT) if (root / EXPORT).exists() else {}
    return [_graph(root, path, said) for path in places if path.suffix in _ENDS]


def files_of(graph: Path) -> list[Path]:
    """Return the files of a graph: itself, and the weights beside it."""
    beside = {graph.with_suffix(".bin").name} if graph.suffix == ".xml" else set()
    return [path for path in graph.parent.iterdir() if path.name.startswith(graph.name) or path.name in beside]


def _graph(root: Path, path: Path, said: dict[str, Any]) -> Graph:
    where = path.relative_to(root).as_posix()
    files, outputs, size = said.get("files"), said.get("outputs"), said.get("dimensions")
    about = files.get(where) if isinstance(files, dict) else None
    if isinstance(about, dict) and isinstance(outputs, list) and isinstance(size, int):
        held = sum(part.stat().st_size for part in files_of(path))
        if about.get("bytes") == held:  # else it is no longer the file of the export
            return Graph(where, size if "last_hidden_state" in outputs else None, size)
    return _looked_into(where, path) if path.suffix == ".onnx" and find_spec("onnx") else Graph(where, None, None)


def _looked_into(where: str, path: Path) -> Graph:
    """Return what a graph says of its outputs, without its weights where they lie beside it."""
    import onnx  # noqa: PLC0415, optional
    from google.protobuf.message import DecodeError  # noqa: PLC0415, which onnx needs

    try:
        outputs = onnx.load(path, load_external_data=False).graph.output
    except (DecodeError, OSError) as error:
        raise UserError(f"{path} is no ONNX graph: {short(str(error))}: take it out") from error
    shapes = {output.name: [size.dim_value for size in output.type.tensor_type.shape.dim] for output in outputs}
    tokens = [shape[2] for shape in shapes.values() if len(shape) == 3 and shape[2]]
    sentence = shapes.get("sentence_embedding") or [0]
    return Graph(where, tokens[0] if tokens else None, sentence[-1] or None)
