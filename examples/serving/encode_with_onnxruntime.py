"""Encode texts with an exported model, without torch: needs onnxruntime, tokenizers and numpy.

st-dimreduce export MODEL --output FOLDER
python examples/serving/encode_with_onnxruntime.py FOLDER "a text" "another text"
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder = Path(sys.argv[1])
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
settings = json.loads((folder / "export.json").read_text())
prompt = settings["prompts"].get(settings["default_prompt_name"], "")  # or another name, such as "query"


def encode(texts: list[str], output: str = "sentence_embedding") -> np.ndarray:
    """Return embeddings or, with ``output="codes"``, the codes of a model that was exported with a precision."""
    encoded = tokenizer.encode_batch([prompt + text for text in texts])
    ids = np.array([text.ids for text in encoded])
    mask = np.array([text.attention_mask for text in encoded])
    return session.run([output], {"input_ids": ids, "attention_mask": mask})[0]


for output in settings["outputs"]:
    if output == "last_hidden_state":  # of the tokens, for readers that pool by themselves
        continue
    vectors = encode(sys.argv[2:], output)
    print(output, vectors.dtype, vectors.shape)
    print(vectors.tolist())
