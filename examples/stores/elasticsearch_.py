"""Vectors of docstrings for Elasticsearch: ``dense_vector`` mappings for float, byte and bit, and their documents.

python examples/stores/elasticsearch_.py [VECTORS [MODEL [COUNT]]]

Needs no server: mappings and vectors are checked against the documented rules of the field type (Elasticsearch 9.1),
and an exact search under each mapping is computed with NumPy.
"""

import json
import sys
from typing import Any

import numpy as np
from corpus import FULL, Corpus

from st_dimreduce import Codes, Precision

ELEMENTS = {"float": Precision.FLOAT32, "byte": Precision.INT8, "bit": Precision.BINARY}
SIMILARITIES = {"cosine", "dot_product", "l2_norm", "max_inner_product"}
WAYS = [(FULL, "float"), (FULL, "byte"), (FULL, "bit"), (128, "byte"), (64, "byte"), (384, "bit"), (256, "bit")]
INDEXES = {family + kind for family in ("", "int8_", "int4_", "bbq_") for kind in ("hnsw", "flat")}


def mapping(element: str, dims: int) -> dict[str, Any]:
    """Return the field for vectors of ``dims`` floats, bytes or bits."""
    field: dict[str, Any] = {"type": "dense_vector", "element_type": element, "dims": dims, "index": True}
    # The codes are quantised already: Elasticsearch's own quantisation takes floats, and keeps them on disk.
    return field | {"similarity": "l2_norm" if element == "bit" else "cosine", "index_options": {"type": "hnsw"}}


def wrong_mapping(field: dict[str, Any]) -> list[str]:
    """Return the rules that a ``dense_vector`` field breaks, for which Elasticsearch would refuse it."""
    element, dims = field.get("element_type", "float"), field.get("dims")
    similarity, options = field.get("similarity"), field.get("index_options", {})
    kind, indexed = options.get("type", "hnsw"), field.get("index", True)
    count = dims if type(dims) is int else 0
    oversample = options.get("rescore_vector", {}).get("oversample", 0)
    rules = {
        "type is dense_vector": field.get("type") == "dense_vector",
        f"element_type is one of {[*ELEMENTS]}": element in ELEMENTS,
        "dims is a whole number from 1 to 4096": dims is None or (type(dims) is int and 1 <= dims <= 4096),
        "dims of bit are a multiple of 8": element != "bit" or not count % 8,
        "similarity of bit is l2_norm": element != "bit" or similarity in (None, "l2_norm"),
        f"similarity is one of {sorted(SIMILARITIES)}": similarity in (None, *SIMILARITIES),
        "similarity and index_options need index: true": indexed or not (similarity or options),
        f"index_options.type is one of {sorted(INDEXES)}": kind in INDEXES and (not options or "type" in options),
        "int8, int4 and bbq indexes take float": element == "float" or kind in ("hnsw", "flat"),
        "int4 takes an even number of dims": not kind.startswith("int4") or not count % 2,
        "bbq takes 64 dims or more": not kind.startswith("bbq") or dims is None or count >= 64,
        "m and ef_construction are for hnsw": kind.endswith("hnsw") or not options.keys() & {"m", "ef_construction"},
        "rescore_vector is for int8, int4 and bbq": "_" in kind or "rescore_vector" not in options,
        "oversample is 0, or more than 1 and less than 10": oversample == 0 or 1 < oversample < 10,
    }
    return [f"expected: {rule}" for rule, kept in rules.items() if not kept]


def wrong_vector(field: dict[str, Any], vector: list[float]) -> list[str]:
    """Return the rules that a document's vector breaks, for which Elasticsearch would refuse it."""
    element, similarity = field["element_type"], field["similarity"]
    norm = np.linalg.norm(vector)
    rules = {
        "as many numbers as dims, a byte for 8 bits": len(vector) == field["dims"] // (8 if element == "bit" else 1),
        "finite numbers": bool(np.isfinite(vector).all()),
        "whole numbers from -128 to 127": element == "float"
        or all(type(x) is int and -128 <= x <= 127 for x in vector),
        "a norm of 1 for dot_product": (element, similarity) != ("float", "dot_product") or abs(norm - 1) < 1e-4,
        "a norm above 0 for cosine": similarity != "cosine" or norm > 0,
    }
    return [f"expected: {rule}" for rule, kept in rules.items() if not kept]


def codes(element: str, vectors: np.ndarray) -> np.ndarray:
    """Return the vectors as documents and queries hold them: floats, or signed bytes (8 bits each for ``bit``)."""
    return Codes.of(vectors, ELEMENTS[element]).values.view(np.float32 if element == "float" else np.int8)


def numbers(element: str, stored: np.ndarray) -> np.ndarray:
    """Return what is compared, as floats: bits as -1 and 1, whose cosines have the order of the Hamming distances."""
    if element == "bit":
        return 2 * np.unpackbits(stored.view(np.uint8), axis=1).astype(np.float32) - 1
    return stored.astype(np.float32)


def main(corpus: Corpus) -> None:
    """Check all documents, then print the mapping of each way and what an exact search of it finds."""
    for size, element in WAYS:
        documents = corpus.documents(size)
        field = mapping(element, documents.shape[1])
        stored = codes(element, documents)
        wrong = wrong_mapping(field) + [line for row in stored.tolist() for line in wrong_vector(field, row)]
        if wrong:
            sys.exit("\n".join(wrong))
        print(json.dumps({"mappings": {"properties": {"embedding": field}}}))
        units = numbers(element, stored)
        units /= np.linalg.norm(units, axis=1, keepdims=True)

        def find(query: np.ndarray, element: str = element, units: np.ndarray = units) -> list[int]:
            scores = units @ numbers(element, codes(element, query[None]))[0]
            return np.argsort(-scores, kind="stable")[:10].tolist()

        corpus.measure("Elasticsearch", element, size, stored[0].nbytes, find, stored.nbytes)


if __name__ == "__main__":
    main(Corpus(*sys.argv[1:]))
