"""Commands that show what a reduced model finds: a demo, a comparison with its base model, a search page."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from st_dimreduce.cli.main import Done, command, hide_loading_bars, quoted, show, show_next
from st_dimreduce.cli.options import BatchSize, CacheFolder, Force, Quiet, TextColumn
from st_dimreduce.enums import Precision


@command
def info(
    path: Annotated[str, typer.Argument(help="A head, a model, an export, an index, or a file of vectors or codes.")],
) -> Done:
    """Say what a folder or file is, how it was fitted, and what reads it.

    Example: st-dimreduce info small
    """
    from st_dimreduce.apps.info import describe

    if not Path(path).exists():  # it is downloaded
        hide_loading_bars()
    about = describe(path)
    width = max(map(len, about))
    for name, value in about.items():
        show(f"{name:{width}}  {value if isinstance(value, str) else json.dumps(value)}")
    return Done(about)


@command
def demo(
    pairs: Annotated[int, typer.Option(help="Number of docstrings to search.")] = 2500,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder to write the reduced model to; none if not given.")
    ] = None,
    force: Force = False,
) -> Done:
    """Reduce all-MiniLM-L6-v2 on the docstrings of installed packages and search them. Downloads nothing.

    Example: st-dimreduce demo --output small
    """
    from st_dimreduce.apps.demo import run_demo
    from st_dimreduce.cli.tables import comparison_table

    def show_item(item: Any) -> None:
        title = f"{pairs:,} docstrings, found by their first sentences (percent)"
        show(item if isinstance(item, str) else comparison_table(item, title))

    hide_loading_bars()
    comparison = run_demo(show_item, pairs, output, force)
    show_next("st-dimreduce reduce MODEL texts.txt --bytes 64 --output small")
    return Done(comparison.to_dict())


@command
def compare(
    base: Annotated[str, typer.Argument(help="Name or path of the base model.")],
    reduced: Annotated[list[str], typer.Argument(help="Names or paths of one or more reduced models.")],
    texts: Annotated[str | None, typer.Option(help="Documents to search: one per line, .jsonl or .csv.")] = None,
    queries: Annotated[
        str | None, typer.Option(help="Queries, like --texts; made of the documents if not given.")
    ] = None,
    relevant: Annotated[
        str | None,
        typer.Option(
            help="What the queries should find, qrels as of BEIR or TREC: ids of a query and a document, and a grade. "
            "Texts without _id are numbered from 1."
        ),
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(help="Pairs with human scores: .csv or .tsv of sentence1, sentence2, score.")
    ] = None,
    precision: Annotated[
        list[Precision] | None,
        typer.Option(help="Precision of the reduced documents; may be repeated. All of them if not given."),
    ] = None,
    peers: Annotated[
        bool,
        typer.Option("--peers", help="Also measure other ways to store the base model's embeddings in as many bytes."),
    ] = False,
    vectors: Annotated[int, typer.Option(help="Number of vectors to state the memory for.")] = 10_000_000,
    price: Annotated[float | None, typer.Option(help="Price of a gigabyte of memory per month.")] = None,
    report: Annotated[
        str | None,
        typer.Option(help="HTML report to write; it contains the texts of the queries that lost and gained most."),
    ] = None,
    column: TextColumn = None,
    batch_size: BatchSize = 32,
    cache: CacheFolder = None,
    quiet: Quiet = False,
) -> Done:
    """Compare reduced models with their base model on your documents, queries or scored pairs.

    Example: st-dimreduce compare all-MiniLM-L6-v2 small --texts texts.txt --report report.html
    """
    from st_dimreduce.files import check_place
    from st_dimreduce.fitting.cloze import cloze_question
    from st_dimreduce.texts import read_question

    if report:
        check_place(report)
    question = read_question(texts, queries, relevant, pairs, column)
    if queries is None and pairs is None:
        question = cloze_question(question.documents)

    from st_dimreduce.cli.tables import comparison_notes, comparison_table
    from st_dimreduce.dim_reduce import chosen_precision
    from st_dimreduce.evaluation.compare import compare_models
    from st_dimreduce.evaluation.report import queries_of, write_html
    from st_dimreduce.models.load import check_names, load_model

    if report:
        from st_dimreduce.evaluation import plots  # noqa: F401, fails before anything is measured if matplotlib is missing

    hide_loading_bars(quiet)
    names = [Path(name).name for name in reduced]
    check_names(names, reduced)
    models = {name: load_model(path) for name, path in zip(names, reduced, strict=True)}
    options: dict[str, Any] = {"with_peers": peers, "batch_size": batch_size, "cache": cache}
    comparison = compare_models(load_model(base), models, question, precision or list(Precision), **options)
    title = f"{comparison.documents:,} documents, {queries_of(comparison, question.cloze)} (percent)"
    table = comparison_table(comparison, title, vectors, price)
    show(comparison.encoded, table, *comparison_notes(comparison))
    if report:  # after the table, so that a full disk does not lose what was measured
        chosen = {name: chosen_precision(model) for name, model in models.items()}
        write_html(comparison, report, question, vectors=vectors, price=price, chosen=chosen)
        show(f"Wrote {report}.")
    else:
        show_next(f"{quoted('st-dimreduce', 'compare', base, *reduced)} ... --report report.html --peers")
    return Done(comparison.to_dict())


@command
def serve(
    models: Annotated[list[str], typer.Argument(help="Folders or names of one or more reduced models.")],
    texts: Annotated[str, typer.Option("--texts", help="Documents to search: one per line, .jsonl or .csv.")],
    column: TextColumn = None,
    base: Annotated[
        str | None,
        typer.Option(help="Name or folder of the full model; the first reduced model without its head if not given."),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of 127.0.0.1; 0 for any that is free.")] = 8765,
    batch_size: BatchSize = 32,
    cache: CacheFolder = None,
    quiet: Quiet = False,
) -> Done:
    """Serve a search page on this machine that shows what the full and the reduced model find, side by side.

    Example: st-dimreduce serve small-128 small-64 --texts texts.txt
    """
    from st_dimreduce.apps.search_page import Corpus, address, bind, make_app, serve_app
    from st_dimreduce.texts import read_texts

    bound = bind(port)  # before the texts are encoded, which takes long
    hide_loading_bars(quiet)
    corpus = Corpus(models, read_texts(texts, column), base=base, batch_size=batch_size, cache=cache)
    show(f"{address(bound)} is open; Ctrl-C ends it.")
    serve_app(make_app(corpus), bound)
    return Done({})
