"""Stack DimReduce behind DistilBERT, train both with the standard trainer, and save the portable form.

python examples/2_train_end_to_end.py [TRANSFORMER] [OUTPUT] [STEPS]
"""

import sys

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from st_dimreduce import DimReduce, save_portable
from st_dimreduce.apps.docstrings import docstring_pairs

name = sys.argv[1] if len(sys.argv) > 1 else "distilbert-base-uncased"
output = sys.argv[2] if len(sys.argv) > 2 else "trained-model"
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 500

transformer = Transformer(name)
width = transformer.get_embedding_dimension()
head = DimReduce(width, width // 4, dropout=0.1)
model = SentenceTransformer(modules=[transformer, Pooling(width, "mean"), head])

queries, documents = zip(*docstring_pairs(2000), strict=True)
pairs = Dataset.from_dict({"anchor": queries, "positive": documents})
loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), matryoshka_dims=[width // 4, width // 8])
arguments = SentenceTransformerTrainingArguments(
    output + "-checkpoints", max_steps=steps, per_device_train_batch_size=16, report_to="none", save_strategy="no"
)
SentenceTransformerTrainer(model, arguments, pairs, loss=loss).train()

save_portable(model, output, overwrite=True)
print(SentenceTransformer(output).encode(["a sentence"]).shape)
