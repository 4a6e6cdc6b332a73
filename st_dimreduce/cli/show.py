"""Commands that show what a reduced model is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from st_dimreduce.files import check_place
from st_dimreduce.cli.options import Force, Quiet, command
from st_dimreduce.evaluation.compare import compare as compare_models
from st_dimreduce.apps.demo import run_demo
from st_dimreduce.models.encoder import load_model
from st_dimreduce.codes.precision import Precision
from st_dimreduce.evaluation.report import comparison_table, write_figures, write_html, write_plots
from st_dimreduce.texts import read_question, read_texts

_TABLE_WIDTH = 124  # of all its columns; a narrower terminal breaks the lines, and loses nothing


@command
def demo(
    pairs: Annotated[int, typer.Option(help="How many docstrings to search.")] = 2500,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder to leave the reduced model in.")] = None,
    force: Force = False,
) -> None:
    """Reduce all-MiniLM-L6-v2 on this machine's docstrings and show what it finds. Downloads nothing."""
    run_demo(Console(width=max(_TABLE_WIDTH, Console().width)), pairs, output, force)


@command
def compare(
    base: Annotated[str, typer.Argument(help="Name or path of the base model.")],
    reduced: Annotated[list[str], typer.Argument(help="Name or path of a reduced model; as many as you like.")],
    texts: Annotated[str | None, typer.Option(help="Texts to search: a text a line, .jsonl or .csv.")] = None,
    queries: Annotated[str | None, typer.Option(help="Texts to search with; if none, the texts themselves.")] = None,
    relevant: Annotated[
        str | None,
        typer.Option(help="What queries should find: a line a pair, numbers of a query and a text, from 1."),
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(help="Pairs with people's scores: .csv or .tsv of sentence1, sentence2, score.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="Store reduced vectors so; may be repeated. Every precision if not given.")
    ] = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also what others make of the base model at these sizes.")
    ] = False,
    vectors: Annotated[int, typer.Option(help="Vectors whose memory is told.")] = 10_000_000,
    price: Annotated[float | None, typer.Option(help="What a gigabyte of memory costs a month.")] = None,
    report: Annotated[str | None, typer.Option(help="HTML file to write; the hurt queries stand in it.")] = None,
    json_: Annotated[str | None, typer.Option("--json", help="JSON file to write the figures to.")] = None,
    plots: Annotated[str | None, typer.Option(help="Folder to write plots to, as PNG.")] = None,
    column: Annotated[str | None, typer.Option(help="Field of .jsonl or .csv that holds the texts.")] = None,
    batch_size: Annotated[int, typer.Option(help="Texts encoded at a time.")] = 32,
    quiet: Quiet = False,
) -> None:
    """Measure reduced models beside their base model, on your texts, queries or pairs."""
    outputs = [output for output in (report, json_, plots) if output is not None]
    for output in outputs:
        check_place(output)
    asked = read_question(texts, queries, relevant, pairs, column)
    models = {Path(name).name: load_model(name) for name in reduced}
    if len(models) < len(reduced):
        raise ValueError(f"reduced models {reduced} have folders of one name: give each a name of its own")
    comparison = compare_models(
        load_model(base),
        models,
        asked.documents,
        asked.queries,
        asked.relevant,
        pairs=asked.pairs,
        precision=precision or list(Precision),
        with_peers=peers,
        batch_size=batch_size,
        show_progress_bar=False if quiet else None,
    )
    console = Console(quiet=quiet, width=max(_TABLE_WIDTH, Console().width))
    title = f"{comparison.documents:,} texts, {comparison.queries:,} queries (percent)"
    console.print(comparison_table(comparison, title, vectors, price))
    if json_:
        write_figures(comparison, json_)
    if plots:
        write_plots(comparison, plots)
    if report:
        write_html(comparison, report, asked, vectors=vectors, price=price)
    if outputs:
        console.print(f"Wrote {', '.join(outputs)}.", highlight=False)


@command
def serve(
    model: Annotated[str, typer.Argument(help="Folder or name of the reduced model.")],
    texts: Annotated[str, typer.Option("--texts", help="File with a text a line, .jsonl or .csv.")],
    column: Annotated[str | None, typer.Option(help="Field of .jsonl or .csv that holds the text.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Full model, where it is not the reduced one without its head: name or folder.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port of 127.0.0.1; 0 for any that is free.")] = 8765,
    batch_size: Annotated[int, typer.Option(help="Texts encoded at a time.")] = 32,
    quiet: Quiet = False,
) -> None:
    """Open a page, for this machine only, that searches your texts with the full and the reduced model side by side."""
    from st_dimreduce.apps.search_page import Corpus, address, bind, make_app, run  # noqa: PLC0415, optional

    bound = bind(port)  # before the texts are encoded, which takes long
    shown = False if quiet else None
    corpus = Corpus(model, read_texts(texts, column), base=base, batch_size=batch_size, show_progress_bar=shown)
    Console(quiet=quiet).print(f"{address(bound)} is open; Ctrl-C ends it.", highlight=False)
    run(make_app(corpus), bound)
