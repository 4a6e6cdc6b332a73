"""Commands for stored vectors: fit a head, transform them, attach it to their model, judge new ones, encode, search."""

from pathlib import Path
from typing import Annotated

import typer

from st_dimreduce.cli.main import Done, command, console, hide_loading_bars, quoted, show, show_next
from st_dimreduce.cli.options import (
    BadRows,
    BatchSize,
    BestEffort,
    Bytes,
    Device,
    Dim,
    Force,
    Goal,
    InStore,
    Keep,
    Output,
    Quiet,
    Seed,
    Source,
    Stored,
    TextColumn,
    Trust,
    VectorColumn,
    cautions,
    say_choice,
)
from st_dimreduce.enums import Objective, OnBadRow, Precision, Verdict


@command
def fit(
    source: Source,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write the head to.")],
    dim: Dim = None,
    bytes_: Bytes = None,
    keep: Keep = None,
    precision: Stored = None,
    store: InStore = None,
    objective: Goal = Objective.QUALITY,
    best_effort: BestEffort = False,
    column: VectorColumn = None,
    seed: Seed = 0,
    on_bad_row: BadRows = OnBadRow.RAISE,
    force: Force = False,
    quiet: Quiet = False,
) -> Done:
    """Fit a head on stored vectors, without a model or texts.

    Example: st-dimreduce fit vectors.parquet --bytes 64 --output head
    """
    from st_dimreduce.files import check_target
    from st_dimreduce.fitting.size import Size
    from st_dimreduce.head import Head
    from st_dimreduce.record import RECORD

    size = Size(dim, bytes=bytes_, keep=keep, store=store, precision=precision)
    check_target(output, force, marker=RECORD)
    show(f"Fitting the head on the vectors in {source}, writing {output}.")
    head = Head.fit(source, size, objective=objective, column=column, on_bad_row=on_bad_row, seed=seed)
    head.save(output, overwrite=force)
    status = say_choice(head.record, keep, best_effort)
    vectors = f"{head.record.vectors:,} vectors of {head.in_features} dimensions"
    show(f"Wrote {output}: {head.out_features} dimensions in {head.precision.value} from {vectors}.")
    if objective is Objective.QUALITY:
        show("It aims at retrieval quality, which vectors alone cannot show: attach it to their model,")
        show("and compare on texts. --objective fidelity keeps more of the full vectors' neighbours.")
    show(*cautions(head.record))
    show_next(
        quoted("st-dimreduce", "transform", output, source, "reduced" + Path(source).suffix),
        quoted("st-dimreduce", "attach", output, "MODEL", "--output", "reduced-model"),
    )
    return Done({"output": output, "record": head.record.to_dict(large=False)}, status)


@command
def transform(
    head: Annotated[str, typer.Argument(help="Folder of a head, or name or folder of a reduced model.")],
    source: Source,
    target: Annotated[str, typer.Argument(help="Output: a .npy, .parquet or .arrow file, or a folder of part files.")],
    precision: Annotated[
        Precision | None, typer.Option(help="Precision of the stored vectors; the head's if not given.")
    ] = None,
    column: VectorColumn = None,
    on_bad_row: BadRows = OnBadRow.RAISE,
    append: Annotated[
        bool, typer.Option("--append", help="Of a source that has grown, reduce what has come since; keep the rest.")
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
) -> Done:
    """Reduce stored vectors. After an interruption, the same command resumes.

    Example: st-dimreduce transform head vectors.parquet reduced.parquet
    """
    from st_dimreduce.head import Head

    if not Path(head).is_dir():  # it is downloaded
        hide_loading_bars(quiet)
    loaded = Head.load(head)
    precision = precision or loaded.precision
    show(f"Reducing {source} to {loaded.out_features} dimensions in {precision.value}, writing {target}.")
    done = loaded.transform_file(
        source, target, precision, column=column, on_bad_row=on_bad_row, overwrite=force, append=append
    )
    zeros = f", {done.bad_rows:,} of them stored as zeros" if done.bad_rows else ""
    size = f"{done.rows:,} vectors of {loaded.out_features} dimensions in {precision.value}, {done.bytes:,} bytes"
    show(f"Wrote {target}: {size}{zeros}; {done.seconds:.1f} s.")
    build = quoted("st-dimreduce", "index", "build", target, "--output", "index")
    show_next(build, quoted("st-dimreduce", "info", target))
    return Done({"output": target, "rows": done.rows, "bad_rows": done.bad_rows, "bytes": done.bytes})


@command
def attach(
    head: Annotated[str, typer.Argument(help="Folder of a head.")],
    model: Annotated[str, typer.Argument(help="Name or path of the model that the vectors came from.")],
    output: Output,
    trust_remote_code: Trust = False,
    force: Force = False,
    quiet: Quiet = False,
) -> Done:
    """Attach a head to the model that its vectors came from, to encode queries for the reduced vectors.

    Example: st-dimreduce attach head all-MiniLM-L6-v2 --output small
    """
    from st_dimreduce.files import check_target
    from st_dimreduce.head import Head

    check_target(output, force)
    loaded = Head.load(head)

    from st_dimreduce.models.load import load_model
    from st_dimreduce.portable.save import save_portable

    hide_loading_bars(quiet)
    show(f"Putting the head in {head} behind {model}, writing {output}.")
    base = load_model(model, trust_remote_code=trust_remote_code)
    save_portable(loaded.attach(base), output, overwrite=force)
    show(f"Wrote {output}.")
    show_next(f"SentenceTransformer({output!r}).encode_query(queries)", quoted("st-dimreduce", "check", output))
    return Done({"output": output})


@command
def drift(
    head: Annotated[str, typer.Argument(help="Folder of a head, or name or folder of a reduced model.")],
    source: Source,
    column: VectorColumn = None,
    seed: Seed = 0,
    on_bad_row: BadRows = OnBadRow.RAISE,
    quiet: Quiet = False,
) -> Done:
    """Judge whether a head still fits the vectors that arrive: it fits, is to be watched, or should be refitted.

    The exit status is 1 if it should be refitted.

    Example: st-dimreduce drift head new.parquet
    """
    from st_dimreduce.head import Head

    if not Path(head).is_dir():  # it is downloaded
        hide_loading_bars(quiet)
    found = Head.load(head).drift(source, column=column, on_bad_row=on_bad_row, seed=seed)

    from st_dimreduce.cli.tables import drift_table

    show(drift_table(found.to_dict()), f"{found.verdict.value}: {found.explanation}")
    if found.verdict is Verdict.REFIT:
        show_next(quoted("st-dimreduce", "fit", source, "--output", "new-head"))
    return Done(found.to_dict(), 1 if found.verdict is Verdict.REFIT else 0)


@command
def encode(
    model: Annotated[str, typer.Argument(help="Name or folder of a reduced model.")],
    texts: Annotated[str, typer.Argument(help="Texts: one per line, .jsonl or .csv.")],
    target: Annotated[str, typer.Argument(help="Output: .parquet or .arrow, with the texts, or .npy, codes alone.")],
    precision: Annotated[
        Precision | None, typer.Option(help="Precision of the codes; the model's if not given.")
    ] = None,
    column: TextColumn = None,
    device: Device = None,
    batch_size: BatchSize = 32,
    trust_remote_code: Trust = False,
    force: Force = False,
    quiet: Quiet = False,
) -> Done:
    """Encode texts as codes. After an interruption, the same command resumes.

    Example: st-dimreduce encode small texts.txt codes.parquet
    """
    from st_dimreduce.texts import read_texts

    sentences = read_texts(texts, column)
    show(f"Encoding {len(sentences):,} texts with {model}, writing {target}.")

    from st_dimreduce.models.encode_texts import encode_file
    from st_dimreduce.models.load import load_model

    hide_loading_bars(quiet)
    loaded = load_model(model, trust_remote_code=trust_remote_code, device=device)
    done = encode_file(loaded, sentences, target, precision, batch_size=batch_size, overwrite=force)
    show(f"Wrote {target}: {done.rows:,} codes, {done.bytes:,} bytes; {done.seconds:.1f} s.")
    given = () if Path(target).suffix != ".npy" else ("--texts", texts)
    show_next(
        quoted("st-dimreduce", "search", model, target, "your question", *given),
        quoted("st-dimreduce", "index", "build", target, "--output", "index"),
    )
    return Done({"output": target, "rows": done.rows, "bytes": done.bytes})


@command
def search(
    model: Annotated[str, typer.Argument(help="Name or folder of the reduced model that made the codes.")],
    codes: Annotated[str, typer.Argument(help="Codes that encode or transform wrote.")],
    queries: Annotated[list[str], typer.Argument(help="Queries; or @FILE, a file with one per line.")],
    texts: Annotated[
        str | None, typer.Option(help="The texts of the codes, to be shown; a table has them in its column text.")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Results per query.")] = 10,
    precision: Annotated[
        Precision | None, typer.Option(help="Precision of the codes, where their file does not say.")
    ] = None,
    column: TextColumn = None,
    trust_remote_code: Trust = False,
) -> Done:
    """Search codes exactly, and print the rank, row, cosine and text of what is found.

    For millions of codes, build an index: st-dimreduce index build.

    Example: st-dimreduce search small codes.parquet "how do I reset my password"
    """
    from st_dimreduce.texts import read_texts

    asked = [line for each in queries for line in (read_texts(each[1:]) if each.startswith("@") else [each])]
    shown = None if texts is None else read_texts(texts, column)
    hide_loading_bars(True)

    from st_dimreduce.models.encode_texts import search_codes
    from st_dimreduce.models.load import load_model

    loaded = load_model(model, trust_remote_code=trust_remote_code)
    found = search_codes(loaded, codes, asked, k, precision=precision, texts=shown)
    width = console().width
    for query, results in zip(asked, found, strict=True):
        show(query)
        for rank, result in enumerate(results, 1):
            line = f"{rank:4}  row {result.row:<8} {result.cosine:.3f}  {' '.join(result.text.split())}"
            show(line[:width].rstrip())
    pairs = zip(asked, found, strict=True)
    return Done({"queries": [{"query": query, "results": [one._asdict() for one in them]} for query, them in pairs]})
