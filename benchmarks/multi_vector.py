"""What late interaction finds when its token vectors are reduced, quantised and pooled.

python -m benchmarks.multi_vector
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import faiss
import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Normalize

from benchmarks.data import CACHE, DATASETS, SHARED, digest, minilm_path, vectors
from benchmarks.printing import header, paragraph, table, write
from st_dimreduce import Summary
from st_dimreduce.codes.metrics import Mean, interval, retrieval
from st_dimreduce.codes.precision import quantize
from st_dimreduce.codes.search import search
from st_dimreduce.codes.tokens import TokenCodes, search_multi_vector
from st_dimreduce.enums import Objective
from st_dimreduce.files import new_file
from st_dimreduce.fitting.fit import fit_head

ABOUT = """
    The token embeddings of all-MiniLM-L6-v2, scaled to norm 1 and scored by MaxSim: no late-interaction model could be
    found to install without a hub, and this one was never trained for it. {} Figures are nDCG@10 in percent of that of
    all 384 float32 dimensions of every token, with a 95 % interval of it from a bootstrap over the queries. Queries
    stay float. Bytes of a document are those of its tokens' codes. Every method was fitted on the documents that it
    stores, without labels."""
PEERS = """
    FAISS `SQ8` codes each dimension between its least and its greatest value, and `PQ` each part of a vector by one of
    256 centres, trained on 25,600 tokens. Sign bits are those of the vector as it is (`binary` of
    `quantize_embeddings`). Pooled tokens: Sentence Transformers' `HierarchicalTokenPooling`, which leaves a half or a
    quarter of them (Clavie et al., "Reducing the footprint of multi-vector retrieval with minimal performance impact
    via token pooling", 2024). One vector: the model as it is meant, mean pooling, float32."""
READING = """
    With a head the bytes of a token are free to choose. At 16 bytes ours of 128 bits are ahead of FAISS `PQ16`, and at
    48 bytes ours of 384 bits, fitted for quality, are as good as the sign bits without any head. But token vectors need
    their dimensions: at the same bytes of a document, one bit of each dimension and fewer tokens (sign bits, 1/4) find
    more docstrings than fewer dimensions of all tokens, and int4 or int8 of 64 or 96 dimensions find less than one or
    two bits of more. Quality is mostly ahead of fidelity on CISI and about even with it on docstrings, and takes
    seconds to fit; it is not the default, because the model measured here was not trained for late interaction. It was
    trained for one vector per text, which in 1,536 bytes finds 93 %.

    Elsewhere: Mixedbread reports of its own models that 1-bit documents and int8 queries keep 99.3 % of nDCG@10, at a
    32nd of the bytes; their token vectors were trained for late interaction."""
DOCUMENTS, QUERIES = 4000, 500
SEEN = 25_600  # tokens that a codebook is trained on, 100 per centre
OURS = [(384, "binary"), *((size, precision) for size in (128, 64) for precision in ("int8", "int4", "int2", "binary"))]
OURS += [(96, "int4"), (96, "binary")]
POOLED = [(128, "int4"), (128, "binary"), (64, "int4")]
NAMES = {"CISI": "CISI", "docstrings": "Docstrings"}
Row = tuple[str, str, str, float, np.ndarray]  # method, tokens, codes, bytes of a document, nDCG@10 of each query


@cache
def model() -> MultiVectorEncoder:
    """Return all-MiniLM-L6-v2 as a late-interaction model."""
    transformer = SentenceTransformer(minilm_path(), device="cpu")[0]
    ends = [MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    return MultiVectorEncoder(modules=[transformer, *ends], device="cpu")


def tokens(dataset: str, part: str, texts: list[str]) -> list[np.ndarray]:
    """Return the token vectors of each text, which are encoded once, and kept in float16."""
    path = CACHE / f"tokens-{dataset}-{part}-{digest(texts)}.npz"
    if not path.exists():
        encode = model().encode_query if part == "queries" else model().encode_document
        found = encode(texts, convert_to_numpy=True)
        with new_file(path) as file:
            np.savez(file, rows=np.concatenate(found).astype(np.float16), sizes=[len(each) for each in found])
    with np.load(path) as kept:
        rows = quantize(kept["rows"].astype(np.float32), "float32")
        return np.split(rows, np.cumsum(kept["sizes"])[:-1])


def rows(dataset: str) -> Iterator[Row]:
    """Measure every method on a data set, the full token vectors first."""
    texts = DATASETS[dataset](SHARED)
    documents, queries = texts.documents[:DOCUMENTS], texts.queries[:QUERIES]
    relevant = (texts.relevant or [])[:QUERIES]
    stored, asked = tokens(dataset, "documents", documents), tokens(dataset, "queries", queries)

    def found(codes: TokenCodes, asked: Sequence[np.ndarray] = asked) -> np.ndarray:
        return retrieval(search_multi_vector(asked, codes)[1], relevant)[0]

    def measured(method: str, kept: str, codes: TokenCodes, named: str = "") -> Row:
        return method, kept, named or codes.precision.value, _bytes(codes), found(codes)

    yield measured("full", "all", TokenCodes.of(stored, "float32"))
    flat = np.concatenate(stored)
    train = flat[np.random.default_rng(0).permutation(len(flat))[:SEEN]]
    for factory in ("SQ8", "PQ48", "PQ16"):
        index = faiss.index_factory(384, factory)
        index.train(train)
        coded = index.sa_encode(flat)
        decoded = np.split(index.sa_decode(coded), np.cumsum([len(each) for each in stored])[:-1])
        size = coded.shape[1] * len(flat) / len(stored)
        yield f"FAISS `{factory}`", "all", f"{coded.shape[1]} bytes", size, found(TokenCodes.of(decoded, "float32"))
    yield measured("sign bits", "all", TokenCodes.of(stored, "binary"))

    def ours(stored: list[np.ndarray], kept: str, sizes: Sequence[tuple[int, str]]) -> Iterator[Row]:
        summary = Summary.of(np.concatenate(stored))
        for objective in Objective:
            for size in dict.fromkeys(size for size, _ in sizes):
                head = fit_head(summary, size, objective=objective)
                reduced, searching = ([head.transform(each) for each in side] for side in (stored, asked))
                for precision in (precision for each, precision in sizes if each == size):
                    codes = TokenCodes.of(reduced, precision)
                    named = f"{size} x {precision}"
                    yield f"ours, {objective.value}", kept, named, _bytes(codes), found(codes, searching)

    yield from ours(stored, "all", OURS)
    for factor, kept in ((2, "1/2"), (4, "1/4")):
        pooled = [each.numpy() for each in HierarchicalTokenPooling(factor).pool([*map(torch.tensor, stored)])]
        yield measured("full", kept, TokenCodes.of(pooled, "float32"))
        yield measured("sign bits", kept, TokenCodes.of(pooled, "binary"))
        yield from ours(pooled, kept, POOLED)

    one, searching = (
        vectors("all-MiniLM-L6-v2", dataset, part, some) for part, some in (("some", documents), ("asked", queries))
    )
    yield "one vector", "", "384 x float32", 4.0 * 384, retrieval(search(searching, one, "float32")[1], relevant)[0]


def _bytes(codes: TokenCodes) -> float:
    return codes.bytes_per_document - codes.offsets.itemsize


def main() -> None:
    blocks, counts = [], []
    for dataset, name in NAMES.items():
        lines, full = [], None
        for method, kept, codes, size, ndcg in rows(dataset):
            full = ndcg if full is None else full
            low, high = interval(Mean(ndcg), Mean(full))
            share = f"{100 * np.nanmean(ndcg) / np.nanmean(full):.1f} ({100 * low:.1f}-{100 * high:.1f})"
            lines.append([method, kept, codes, f"{size:,.0f}", share])
            print(dataset, *lines[-1], flush=True)
        texts = DATASETS[dataset](SHARED)
        stored = tokens(dataset, "documents", texts.documents[:DOCUMENTS])
        counts.append(
            f"{name}: {len(stored):,} documents of {np.mean([*map(len, stored)]):.0f} tokens, "
            f"{len(ndcg):,} queries, the float model's nDCG@10 is {100 * np.nanmean(full):.1f}."
        )
        columns = ["method", "tokens", "codes", "bytes of a document", "nDCG@10, %"]
        blocks += [f"## {name}", table(columns, lines, left=3)]
    packages = ["st_dimreduce", "sentence-transformers", "torch", "numpy", "faiss-cpu"]
    about = header("multi_vector", packages, ABOUT.format(" ".join(counts)))
    reading = map(paragraph, READING.split("\n\n"))
    write("MULTI_VECTOR.md", ["# Late interaction", about, paragraph(PEERS), *blocks, *reading])


if __name__ == "__main__":
    main()
