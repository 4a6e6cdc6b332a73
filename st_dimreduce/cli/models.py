"""Commands that make a reduced model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from st_dimreduce.files import check_target
from st_dimreduce.cli.options import Bytes, Dim, Force, Goal, Keep, Quiet, Seed, Trust, command
from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.models.encoder import load_model
from st_dimreduce.fitting import Objective
from st_dimreduce.portable.hub import publish as publish_model
from st_dimreduce.portable import check as check_folder
from st_dimreduce.portable import fix as fix_folder
from st_dimreduce.portable import save_portable
from st_dimreduce.recipe import reduce_and_compare
from st_dimreduce.evaluation.report import choice_table, comparison_table, publication_table
from st_dimreduce.runtimes.export import export as export_graph
from st_dimreduce.texts import read_texts


@command
def reduce(
    model: Annotated[str, typer.Argument(help="Name or path of the base model.")],
    texts: Annotated[str, typer.Argument(help="File with a text a line, .jsonl or .csv; - for standard input.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write the reduced model to.")],
    dim: Dim = None,
    bytes_: Bytes = None,
    keep: Keep = None,
    objective: Goal = "quality",
    column: Annotated[str | None, typer.Option(help="Field of .jsonl or .csv that holds the text.")] = None,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(help="Texts encoded at a time.")] = 32,
    trust_remote_code: Trust = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Fit a smaller model on your texts, say what that cost, and write it for any consumer to load."""
    console = Console(quiet=quiet)
    check_target(output, force)
    sentences = read_texts(texts, column)
    reduced, comparison = reduce_and_compare(
        load_model(model, trust_remote_code=trust_remote_code),
        sentences,
        dim,
        bytes_per_vector=bytes_,
        keep=keep,
        objective=objective,
        seed=seed,
        batch_size=batch_size,
        show_progress_bar=False if quiet else None,
    )
    save_portable(reduced, output, figures=comparison.to_dict(), overwrite=force)
    choice = DimReduce.from_model(reduced).fitted.get("choice")
    if choice:
        console.print(choice_table(choice))
    title = f"{comparison.documents:,} texts held out of {len(sentences):,}, each searching the others (percent)"
    console.print(comparison_table(comparison, title))
    if objective == Objective.QUALITY:
        console.print("Made to find what people look for; --objective fidelity agrees more with the base model.")
    console.print(f"Wrote {output}: SentenceTransformer({output!r}) loads it.", highlight=False)


@command
def publish(
    folder: Annotated[str, typer.Argument(help="Folder of a reduced model.")],
    repo_id: Annotated[str, typer.Argument(help="Name to publish under: user/name.")],
    private: Annotated[bool, typer.Option("--private", help="Only you may see it.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to publish to; main if not given.")] = None,
    token_file: Annotated[
        str | None, typer.Option(help="File that holds a token; HF_TOKEN or `hf auth login` if not given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the files and the card, send nothing.")] = False,
    quiet: Quiet = False,
) -> None:
    """Publish a reduced model on the Hugging Face Hub, with a model card: all of it in one commit, or nothing."""
    console = Console(quiet=quiet, soft_wrap=True)
    token = Path(token_file).read_text(encoding="utf-8").strip() if token_file else None  # never in a list of processes
    done = publish_model(folder, repo_id, private=private or None, token=token, revision=revision, dry_run=dry_run)
    if dry_run:
        console.print(publication_table(done.files))
        console.print(done.card, markup=False, highlight=False)
    what = "Nothing was sent. Without --dry-run it would be at" if dry_run else "Published:"
    console.print(f"{what} {done.url}", highlight=False)


@command
def export(
    source: Annotated[str, typer.Argument(help="Name or folder of a reduced model, or folder of a head.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write the graph to.")],
    format_: Annotated[str, typer.Option("--format", help="onnx or openvino.")] = "onnx",
    precision: Annotated[
        str | None,
        typer.Option(help="int8, int4, int2 or binary: also give codes; what it was fitted for if not given."),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write a reduced model or a head as a graph for ONNX Runtime or OpenVINO."""
    shown = False if quiet else None
    written = export_graph(source, output, format_, precision=precision, overwrite=force, show_progress_bar=shown)
    Console(quiet=quiet).print(f"Wrote {written}.", highlight=False)


@command
def check(
    folder: Annotated[str, typer.Argument(help="Folder of a model.")],
    fix: Annotated[bool, typer.Option("--fix", help="Rewrite its settings so that every reader knows them.")] = False,
) -> None:
    """Name what Text Embeddings Inference or an older Sentence Transformers would misread; status 1 if there is any."""
    if fix:
        fix_folder(folder)
    problems = check_folder(folder)
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{folder}: every reader gives the model's vectors.")
