"""Commands for an index of codes: build it, add to it, remove from it, search it, merge several."""

from pathlib import Path
from typing import Annotated, Any

import typer

from st_dimreduce.cli.main import Done, group, hide_loading_bars, quoted, show, show_next, show_row
from st_dimreduce.cli.options import BadRows, BatchSize, Force, Quiet, Seed, TextColumn, VectorColumn
from st_dimreduce.enums import Kind, OnBadRow, Precision
from st_dimreduce.errors import UserError

index = group("index", "Build, change and search an index of codes, with FAISS.")

Index = Annotated[str, typer.Argument(help="Folder of the index.")]
Indexed = Annotated[
    str,
    typer.Argument(help="Vectors or codes: .npy, .parquet or .arrow; or texts, one per line, .jsonl or .csv."),
]
IdColumn = Annotated[str | None, typer.Option("--id-column", help="Column of the ids, in a table.")]
_DIGITS = 19  # of an id
_TABLES = (".npy", ".parquet", ".arrow", ".feather", "")


@index
def build(
    head: Annotated[str, typer.Argument(help="Folder of a head, or name or folder of a reduced model.")],
    source: Indexed,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write the index to.")],
    kind: Annotated[
        Kind, typer.Option(help="An inverted file (ivf), a graph (hnsw), or every code scanned (flat).")
    ] = Kind.IVF,
    precision: Annotated[
        Precision | None, typer.Option(help="Precision of the codes; the head's if not given.")
    ] = None,
    cells: Annotated[int | None, typer.Option(help="Number of cells; by the number of vectors if not given.")] = None,
    column: VectorColumn = None,
    id_column: IdColumn = None,
    queries: Annotated[
        str | None, typer.Option(help="Typical queries, reduced, in a .npy file: to measure recall with.")
    ] = None,
    seed: Seed = 0,
    on_bad_row: BadRows = OnBadRow.RAISE,
    batch_size: BatchSize = 32,
    force: Force = False,
    quiet: Quiet = False,
) -> Done:
    """Build an index of stored vectors, codes or texts. After an interruption, the same command resumes.

    Example: st-dimreduce index build small codes.parquet --output index
    """
    from st_dimreduce.codes.manifest import MANIFEST
    from st_dimreduce.files import check_target
    from st_dimreduce.vectors.index import build_index

    check_target(output, force, marker=MANIFEST)
    show(f"Builds an index of {source}, writes {output}.")
    given, texts = _opened(head, source, column, quiet)
    built = build_index(
        source if texts is None else texts,
        given,
        output,
        kind=kind,
        precision=precision,
        column=None if texts is not None else column,
        id_column=id_column,
        cells=cells,
        queries=None if queries is None else _read_vectors(queries),
        seed=seed,
        on_bad_row=on_bad_row,
        batch_size=batch_size,
        overwrite=force,
    )
    show(f"Wrote {output}: {_about(built)}.")
    show_next(quoted("st-dimreduce", "index", "search", output, "queries.txt", "--model", "MODEL"))
    return Done({"output": output, **_figures(built)})


@index
def add(
    index: Index,
    source: Indexed,
    model: Annotated[str | None, typer.Option(help="Reduced model, for texts.")] = None,
    column: VectorColumn = None,
    id_column: IdColumn = None,
    on_bad_row: BadRows = OnBadRow.RAISE,
    batch_size: BatchSize = 32,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the vectors of ids that are there.")] = False,
    quiet: Quiet = False,
) -> Done:
    """Add vectors, codes or texts to an index."""
    from st_dimreduce.codes.index import open_index
    from st_dimreduce.vectors.index import add_to_index

    opened = open_index(index)
    loaded, texts = (None, None) if model is None else _opened(model, source, column, quiet)
    count = add_to_index(
        opened,
        source if texts is None else texts,
        loaded if texts is not None else None,
        column=None if texts is not None else column,
        id_column=id_column,
        on_bad_row=on_bad_row,
        batch_size=batch_size,
        overwrite=replace,
    )
    show(f"Added {count:,}: {_about(opened)}.")
    return Done({"added": count, **_figures(opened)})


@index
def remove(
    index: Index,
    ids: Annotated[list[str], typer.Argument(help="Ids; or @FILE, a file with one per line.")],
    quiet: Quiet = False,
) -> Done:
    """Remove documents from an index by their ids."""
    from st_dimreduce.codes.index import open_index

    opened = open_index(index)
    opened.remove(_ids(ids, opened.manifest.named))
    show(f"Now {_about(opened)}.")
    return Done(_figures(opened))


@index
def search(
    index: Index,
    queries: Annotated[str, typer.Argument(help="Queries: a .npy file of reduced vectors; with --model, texts.")],
    model: Annotated[str | None, typer.Option(help="Reduced model, for texts.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", help="Documents per query.")] = 10,
    recall: Annotated[
        float | None, typer.Option(help="Share of what exact search finds that should be found; 0.95 if not given.")
    ] = None,
    column: TextColumn = None,
) -> Done:
    """Search an index; prints the number of the query, rank, id and cosine, a line each, with tabs between them."""
    from st_dimreduce.codes.index import open_index

    opened = open_index(index)
    if model is None:
        vectors = _read_vectors(queries)
    else:
        from st_dimreduce.models.load import load_model
        from st_dimreduce.texts import read_texts

        hide_loading_bars(True)
        vectors = load_model(model).encode_query(read_texts(queries, column), show_progress_bar=False)
    scores, ids = opened.search(vectors, top_k, recall=recall)
    results = []
    for number, (row, of) in enumerate(zip(ids.tolist(), scores.tolist(), strict=True), 1):
        for rank, (one, score) in enumerate(zip(row, of, strict=True), 1):
            if score > float("-inf"):
                show_row(number, rank, one, f"{score:.4f}")
                results.append({"query": number, "rank": rank, "id": one, "cosine": round(score, 6)})
    return Done({"results": results})


@index
def info(index: Index) -> Done:
    """Check an index and describe it."""
    from st_dimreduce.codes.index import open_index

    opened = open_index(index)
    manifest = opened.manifest
    removed = sum(state.removed_rows for state in manifest.segments)
    size = sum(path.stat().st_size for path in opened.path.rglob("*") if path.is_file())
    show(f"{_about(opened)}; segments: {len(manifest.segments)}, removed vectors: {removed:,}, bytes: {size:,}.")
    for results, recalls in (manifest.recalls or {}).items():
        reached = ", ".join(
            f"{recall:.3f} ({effort})" for effort, recall in zip(manifest.efforts, recalls, strict=True)
        )
        show(f"recall@{results} (cells looked into): {reached}")
    return Done({**_figures(opened), "segments": len(manifest.segments), "removed": removed, "bytes": size})


@index
def merge(
    indexes: Annotated[list[str], typer.Argument(help="Folders of indexes of one head.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write the index to.")],
    force: Force = False,
    quiet: Quiet = False,
) -> Done:
    """Merge indexes into a new one; or one alone, to drop what was removed."""
    from st_dimreduce.codes.index import merge_indexes

    merged = merge_indexes(indexes, output, overwrite=force)
    show(f"Wrote {output}: {_about(merged)}.")
    return Done({"output": output, **_figures(merged)})


def _opened(head: str, source: str, column: str | None, quiet: bool) -> tuple[Any, list[str] | None]:
    """Return the head, or for a source of texts the reduced model, and the texts."""
    if Path(source).suffix.lower() in _TABLES and source != "-":
        from st_dimreduce.models.load import load_head

        if not Path(head).is_dir():
            hide_loading_bars(quiet)
        return load_head(head), None
    from st_dimreduce.texts import read_texts

    texts = read_texts(source, column)
    hide_loading_bars(quiet)
    from st_dimreduce.models.load import load_model

    return load_model(head), texts


def _read_vectors(path: str) -> Any:
    from st_dimreduce.vectors.sources import mapped

    if Path(path).suffix.lower() != ".npy":
        raise UserError(f"{path} is no .npy file: give reduced vectors, or texts with --model")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}: give reduced vectors in a .npy file")
    return mapped(Path(path))


def _ids(given: list[str], named: bool) -> list[Any]:
    from st_dimreduce.codes.ids import shown

    words = []
    for each in given:
        if each.startswith("@"):
            try:
                words.extend(Path(each[1:]).read_text(encoding="utf-8").splitlines())
            except UnicodeDecodeError as error:
                raise UserError(f"{each[1:]} is no text in UTF-8: expected an id per line") from error
        else:
            words.append(each)
    if named:
        return list(words)
    for word in words:
        if not word.isascii() or not word.isdigit() or len(word) > _DIGITS:
            raise UserError(f"id {shown(word)} is no number from 0 to 2^63 - 1: the index holds integers")
    return [int(word) for word in words]


def _figures(opened: Any) -> dict[str, Any]:
    about = {"kind": opened.kind.value, "vectors": len(opened), "out_features": opened.out_features}
    return {**about, "precision": opened.precision.value}


def _about(opened: Any) -> str:
    stored = f"{len(opened):,} vectors of {opened.out_features} dimensions in {opened.precision.value}"
    return f"{opened.kind.value} index of {stored}"
