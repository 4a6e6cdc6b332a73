"""A random tiny model, for logic only, and sentences of its words."""

from __future__ import annotations

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from st_dimreduce import DimReduce

WORDS = ["the", "a", "cat", "dog", "bird", "fish", "runs", "sleeps", "swims", "sings"]
WORDS += ["over", "under", "near", "far", "red", "blue", "green", "small", "large", "old"]
SENTENCES = [f"{a} {b} {c} {d}" for a in WORDS[:2] for b in WORDS[2:6] for c in WORDS[6:10] for d in WORDS[10:14]]


def make_tiny(tiny_path):
    """Transformer, mean pooling and Normalize over the tiny DistilBERT."""
    transformer = Transformer(tiny_path)
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")


def trainable(model):
    """The same reduced model with its head as a ``DimReduce``, the form that is trained."""
    modules = list(model)
    place = max(place for place, module in enumerate(modules) if isinstance(module, Dense))
    modules[place] = DimReduce.from_model(model)
    return SentenceTransformer(modules=modules, device="cpu")
