"""Commands that make, check and publish reduced models."""

import json
from pathlib import Path
from typing import Annotated

import typer

from st_dimreduce.cli.main import Done, command, hide_loading_bars, quoted, show, show_next
from st_dimreduce.cli.options import (
    BatchSize,
    BestEffort,
    Bytes,
    CacheFolder,
    Device,
    Dim,
    Force,
    Goal,
    InStore,
    Keep,
    Output,
    Quiet,
    Seed,
    Stored,
    TextColumn,
    Trust,
    Variants,
    cautions,
    read_sizes,
    say_choice,
)
from st_dimreduce.enums import Objective, Precision, Variant


@command
def reduce(
    model: Annotated[str, typer.Argument(help="Name or path of the base model.")],
    texts: Annotated[str, typer.Argument(help="File of texts: one per line, .jsonl or .csv; - for standard input.")],
    output: Output,
    dim: Dim = None,
    bytes_: Bytes = None,
    keep: Keep = None,
    nested: Annotated[
        str | None,
        typer.Option(help="Instead of --dim: sizes at which the vectors may be truncated, such as 64,128,256."),
    ] = None,
    precision: Stored = None,
    store: InStore = None,
    objective: Goal = Objective.QUALITY,
    pairs: Annotated[
        str | None,
        typer.Option(help="Labelled pairs to train on: .jsonl, .csv or .tsv of query, document and perhaps negative."),
    ] = None,
    best_effort: BestEffort = False,
    column: TextColumn = None,
    query_prompt: Annotated[str | None, typer.Option(help="What the model expects before a query.")] = None,
    document_prompt: Annotated[str | None, typer.Option(help="What the model expects before a document.")] = None,
    device: Device = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    cache: CacheFolder = None,
    trust_remote_code: Trust = False,
    force: Force = False,
    quiet: Quiet = False,
) -> Done:
    """Reduce a model: fit a head on your texts, measure the loss on some of them, and write the reduced model.

    Example: st-dimreduce reduce all-MiniLM-L6-v2 texts.txt --bytes 64 --output small
    """
    from st_dimreduce.files import check_target
    from st_dimreduce.fitting.size import Size
    from st_dimreduce.texts import read_labelled_pairs, read_texts

    size = Size(dim, bytes=bytes_, keep=keep, nested=read_sizes(nested), store=store, precision=precision)
    check_target(output, force)
    sentences = read_texts(texts, column)
    labelled = None if pairs is None else read_labelled_pairs(pairs)

    show(
        f"Fitting the head on {len(sentences):,} texts with {model}, measuring it on held-out texts, writing {output}."
    )

    from st_dimreduce.cli.tables import comparison_notes, comparison_table
    from st_dimreduce.dim_reduce import head_of
    from st_dimreduce.evaluation.report import queries_of
    from st_dimreduce.models.load import load_model
    from st_dimreduce.portable.save import save_portable
    from st_dimreduce.recipe import reduce_and_compare

    hide_loading_bars(quiet)
    base = load_model(model, trust_remote_code=trust_remote_code, device=device)
    given = {"query": query_prompt, "document": document_prompt}
    base.prompts |= {name: prompt for name, prompt in given.items() if prompt is not None}
    reduced, comparison = reduce_and_compare(
        base,
        sentences,
        size,
        objective=objective,
        pairs=labelled,
        seed=seed,
        batch_size=batch_size,
        cache=cache,
    )
    save_portable(reduced, output, figures=comparison.to_dict(), overwrite=force)
    _, record = head_of(reduced)
    status = say_choice(record, keep, best_effort)
    title = f"{comparison.documents:,} held-out texts of {len(sentences):,}, {queries_of(comparison)} (percent)"
    show(comparison_table(comparison, title), *comparison_notes(comparison), *cautions(record, len(sentences)))
    size_said = f"{comparison.rows[-1].dimensions} dimensions, to be stored as {record.precision.value}"
    show(f"Wrote {output}: {size_said}.")
    show_next(
        f"SentenceTransformer({output!r}).encode(texts)",
        quoted("st-dimreduce", "encode", output, texts, "codes.parquet"),
        quoted("st-dimreduce", "serve", output, "--texts", texts),
    )
    return Done({"output": output, "record": record.to_dict(large=False), **comparison.to_dict()}, status)


@command
def publish(
    folder: Annotated[str, typer.Argument(help="Folder of a reduced model.")],
    repo_id: Annotated[str, typer.Argument(help="Name to publish under: user/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Make a graph for ONNX Runtime, and send it too.")] = False,
    variants: Variants = None,
    revision: Annotated[str | None, typer.Option(help="Branch to publish to; main if not given.")] = None,
    token_file: Annotated[
        str | None, typer.Option(help="File that holds a token; HF_TOKEN or `hf auth login` if not given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the files and the card, send nothing.")] = False,
    quiet: Quiet = False,
) -> Done:
    """Publish a reduced model and its model card on the Hugging Face Hub, in one commit.

    Example: st-dimreduce publish small user/small --onnx --dry-run
    """
    from st_dimreduce.cli.tables import publication_table
    from st_dimreduce.portable.publish import publish as publish_model

    # From a file: arguments of a process can be seen by other users of the machine.
    token = Path(token_file).read_text(encoding="utf-8").strip() if token_file else None
    hide_loading_bars(quiet)
    show(f"{'Dry run of publishing' if dry_run else 'Publishing'} {folder} as {repo_id}.")
    publication = publish_model(
        folder,
        repo_id,
        onnx=variants or onnx,
        private=private or None,
        token=token,
        revision=revision,
        dry_run=dry_run,
    )
    if dry_run:
        show(publication_table(publication.files), publication.card)
    done = "Nothing was sent. Without --dry-run it would be at" if dry_run else "Published:"
    show(f"{done} {publication.url}")
    if not dry_run:
        show_next(f"SentenceTransformer({repo_id!r}).encode(texts)")
    return Done({"url": publication.url, "files": publication.files, "sent": not dry_run})


@command
def export(
    source: Annotated[str, typer.Argument(help="Name or folder of a reduced model.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write the graph to.")],
    precision: Annotated[
        Precision | None,
        typer.Option(help="Precision of the codes, a further output (float32: none); the head's if not given."),
    ] = None,
    variants: Annotated[
        list[Variant] | None,
        typer.Option("--variant", help="Number format of the weights; may be given again. fp32 if not given."),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> Done:
    """Export a reduced model as a graph for ONNX Runtime.

    Example: st-dimreduce export small --output graph --variant int8
    """
    from st_dimreduce.portable.export import SETTINGS
    from st_dimreduce.portable.export import export as export_graph

    hide_loading_bars(quiet)
    show(f"Exporting {source} for ONNX Runtime to {output}.")
    written = export_graph(source, output, precision=precision, variants=variants or ("fp32",), overwrite=force)
    show(f"Wrote {written}.")
    files = json.loads(Path(output, SETTINGS).read_text(encoding="utf-8"))["files"]
    for name, about in files.items():
        cosines = f"cosine to the model {about['mean_cosine']:.4f}, at least {about['least_cosine']:.4f}"
        show(f"  {name}: {about['bytes'] / 1e6:,.0f} MB, {cosines}")
    show_next(quoted("st-dimreduce", "info", output), quoted("st-dimreduce", "check", output))
    return Done({"output": output, "graph": str(written), "files": files})


@command
def check(
    folder: Annotated[str, typer.Argument(help="Folder of a model.")],
    fix: Annotated[bool, typer.Option("--fix", help="Rewrite the model's settings as every reader expects.")] = False,
    trust_remote_code: Trust = False,
) -> Done:
    """Say, reader by reader, whether a model's folder gives the model's vectors, and what is wrong in it.

    The exit status is 1 if anything is wrong. Readers of graphs alone fail on a folder without one, which is not wrong.

    Example: st-dimreduce check small --fix
    """
    from st_dimreduce.portable.check import check as check_folder
    from st_dimreduce.portable.readers import readers_table

    if fix:
        hide_loading_bars()
    found = check_folder(folder, fix, trust_remote_code=trust_remote_code)
    if found.readers:
        show(readers_table(found.readers))
    show(*map(str, found.problems))
    if found:
        show(f"{folder}: nothing is wrong.")
    return Done(found.to_dict(), 0 if found else 1)
