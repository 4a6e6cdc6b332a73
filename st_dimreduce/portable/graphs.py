"""ONNX files in a model's folder, which some readers take in place of its modules: are they reduced?"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from st_dimreduce.errors import UserError
from st_dimreduce.untrusted import read_object, short

EXPORT = "export.json"  # what ``export`` says of its files


@dataclass(frozen=True)
class Graph:
    """An ONNX file in a model's folder.

    Attributes:
        where: Its place, relative to the model's folder.
        tokens: Size of its token embeddings; None if it gives none, or it is not known what it gives.
        sentence: Size of its ``sentence_embedding``; None likewise.
    """

    where: str
    tokens: int | None = None
    sentence: int | None = None

    @property
    def sizes(self) -> set[int]:
        """The sizes of all that it gives."""
        return {size for size in (self.tokens, self.sentence) if size is not None}


def graphs_of(root: Path) -> list[Graph]:
    """Return the ONNX files in a model's folder, where readers look for them.

    Raises:
        UserError: If ``export.json`` or a file cannot be read.
    """
    about = read_object(root / EXPORT) if (root / EXPORT).exists() else {}
    return [_graph(root, path, about) for path in [*sorted(root.glob("*.onnx")), *sorted(root.glob("onnx/*.onnx"))]]


def files_of(graph: Path) -> list[Path]:
    """Return an ONNX file and those of its weights, which are beside it."""
    return [path for path in graph.parent.iterdir() if path.name.startswith(graph.name)]


def _graph(root: Path, path: Path, about: dict[str, Any]) -> Graph:
    where = path.relative_to(root).as_posix()
    files, outputs, size = about.get("files"), about.get("outputs"), about.get("dimensions")
    exported = files.get(where) if isinstance(files, dict) else None
    if isinstance(exported, dict) and isinstance(outputs, list) and isinstance(size, int):
        held = sum(part.stat().st_size for part in files_of(path))
        if exported.get("bytes") == held:  # else it is no longer the file of the export
            return Graph(where, size if "last_hidden_state" in outputs else None, size)
    if find_spec("onnx") is None:
        return Graph(where)
    import onnx  # noqa: PLC0415, optional
    from google.protobuf.message import DecodeError  # noqa: PLC0415, which onnx needs

    try:
        given = onnx.load(path, load_external_data=False).graph.output
    except (DecodeError, OSError) as error:
        raise UserError(f"{path} is not an ONNX file: {short(str(error))}: remove it") from error
    shapes = {output.name: [size.dim_value for size in output.type.tensor_type.shape.dim] for output in given}
    tokens = [shape[2] for shape in shapes.values() if len(shape) == 3 and shape[2]]
    sentence = shapes.get("sentence_embedding") or [0]
    return Graph(where, tokens[0] if tokens else None, sentence[-1] or None)
