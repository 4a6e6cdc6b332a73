"""Commands for an index of codes: build it, add to it, remove from it, search it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from st_dimreduce.cli.main import Done, group, hide_loading_bars, quoted, show, show_next, show_row
from st_dimreduce.cli.options import Force, Quiet, Seed, TextColumn
from st_dimreduce.enums import Kind
from st_dimreduce.errors import UserError

if TYPE_CHECKING:
    from st_dimreduce.codes.codes import Codes
    from st_dimreduce.vectors.index import Index

index = group("index", "Build, change and search an index of codes, with FAISS.")

Folder = Annotated[str, typer.Argument(help="Folder of the index.")]
Source = Annotated[
    str, typer.Argument(help="Codes that transform wrote: .npy, .parquet or .arrow, or a folder of such files.")
]
CodeColumn = Annotated[str | None, typer.Option("--column", help="Column of the codes, in a table with several.")]
IdColumn = Annotated[str | None, typer.Option("--id-column", help="Column of the ids, in a table; else row numbers.")]


@index
def build(
    source: Source,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write the index to.")],
    kind: Annotated[Kind, typer.Option(help="An inverted file (ivf), or every code scanned (flat).")] = Kind.IVF,
    cells: Annotated[int | None, typer.Option(help="Number of cells; by the number of codes if not given.")] = None,
    column: CodeColumn = None,
    id_column: IdColumn = None,
    seed: Seed = 0,
    force: Force = False,
    quiet: Quiet = False,
) -> Done:
    """Build an index of codes.

    Example: st-dimreduce index build codes.parquet --output index
    """
    from st_dimreduce.codes.origin import INDEX_FILE
    from st_dimreduce.files import check_target
    from st_dimreduce.vectors.index import Index

    check_target(output, force, marker=INDEX_FILE)
    codes, ids = _read(source, column, id_column)
    built = Index.build(codes, ids, kind, cells=cells, seed=seed)
    built.save(output, overwrite=force)
    show(f"Wrote {output}: {built}.")
    show_next(quoted("st-dimreduce", "index", "search", output, "queries.txt", "--model", "MODEL"))
    return Done({"output": output, **_figures(built)})


@index
def add(
    folder: Folder, source: Source, column: CodeColumn = None, id_column: IdColumn = None, quiet: Quiet = False
) -> Done:
    """Add codes of the same head to an index."""
    opened = _load(folder)
    codes, ids = _read(source, column, id_column)
    opened.add(codes, ids)
    opened.save(folder, overwrite=True)
    show(f"Added {len(codes):,}: {opened}.")
    return Done({"added": len(codes), **_figures(opened)})


@index
def remove(
    folder: Folder,
    ids: Annotated[list[str], typer.Argument(help="Ids; or @FILE, a file with one per line.")],
    quiet: Quiet = False,
) -> Done:
    """Remove documents from an index by their ids."""
    opened = _load(folder)
    before = len(opened)
    opened.remove(_parse(ids, opened.has_names))
    opened.save(folder, overwrite=True)
    show(f"Removed {before - len(opened):,}: {opened}.")
    return Done({"removed": before - len(opened), **_figures(opened)})


@index
def search(
    folder: Folder,
    queries: Annotated[str, typer.Argument(help="Queries: texts with --model, else transformed vectors in .npy.")],
    model: Annotated[str | None, typer.Option(help="Reduced model, for texts.")] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Results per query.")] = 10,
    recall: Annotated[float, typer.Option(help="Share of what exact search finds that should be found.")] = 0.95,
    column: TextColumn = None,
) -> Done:
    """Search an index; prints the number of the query, rank, id and cosine, a line each, with tabs between them."""
    opened = _load(folder)
    vectors = _read_vectors(queries) if model is None else _encode(model, queries, column, opened, folder)
    scores, ids = opened.search(vectors, k, recall)
    results = []
    for number, (row, of) in enumerate(zip(ids.tolist(), scores.tolist(), strict=True), 1):
        for rank, (one, score) in enumerate(zip(row, of, strict=True), 1):
            show_row(number, rank, one, f"{score:.4f}")
            results.append({"query": number, "rank": rank, "id": one, "cosine": round(score, 6)})
    return Done({"results": results})


def _load(folder: str) -> "Index":
    from st_dimreduce.vectors.index import Index

    return Index.load(folder)


def _read(source: str, column: str | None, id_column: str | None) -> tuple["Codes", Any]:
    """Return codes, and their ids if these are in a column."""
    from st_dimreduce.codes.codes import Codes

    try:
        codes = Codes.load(source, column)
    except UserError as error:
        command = quoted("st-dimreduce", "transform", "HEAD", source, "codes.npy")
        raise UserError(f"{error}; where it holds vectors, make codes of them: {command}") from error
    if id_column is None:
        return codes, None
    if Path(source).suffix == ".npy" or any(Path(source).glob("*.npy")):
        raise UserError(f"--id-column {id_column}: {source} is not a table, leave the option out")
    from pyarrow.dataset import dataset

    table = dataset(source, format="ipc" if Path(source).suffix in (".arrow", ".feather") else "parquet")
    if id_column not in table.schema.names:
        raise UserError(f"--id-column {id_column}: {source} has the columns {', '.join(table.schema.names)}")
    return codes, table.to_table(columns=[id_column])[id_column].to_numpy()


def _encode(model: str, queries: str, column: str | None, opened: "Index", folder: str) -> Any:
    from st_dimreduce.head import Head
    from st_dimreduce.models.load import load_model
    from st_dimreduce.texts import read_texts

    texts = read_texts(queries, column)
    hide_loading_bars(True)
    loaded = load_model(model)
    opened.origin.check(Head.from_model(loaded).fingerprint, folder)
    return loaded.encode_query(texts, show_progress_bar=False)


def _read_vectors(path: str) -> Any:
    from st_dimreduce.codes.rows import map_array

    if Path(path).suffix.lower() != ".npy":
        raise UserError(f"{path} is not a .npy file: give transformed vectors, or texts with --model")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}: give transformed vectors in a .npy file")
    return map_array(Path(path))


def _parse(given: list[str], names: bool) -> list[Any]:
    """Return the ids on a command line."""
    from st_dimreduce.untrusted import short

    words = [word for each in given for word in (_lines(Path(each[1:])) if each.startswith("@") else [each])]
    wrong = next((word for word in words if not (word.isascii() and word.isdigit())), None)
    if wrong is not None and not names:
        raise UserError(f"id {short(wrong)} is not a number: the index holds integers")
    return list(words) if names else [int(word) for word in words]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: expected an id per line") from error


def _figures(opened: "Index") -> dict[str, Any]:
    stored = {"vectors": len(opened), **opened.origin.to_dict()}
    return {"kind": opened.kind.value, **stored, "recall": opened.measured.recalls}
