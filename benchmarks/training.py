"""Training a whole Sentence Transformer, for the benchmarks that need one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from torch import nn
from torch.utils.data import SequentialSampler

BATCH, TRAIN_LENGTH, WARM_UP = 64, 128, 20
PAIRS_RATE = 2e-5  # learning rate on labelled pairs


def train_on_pairs(
    model: SentenceTransformer, pairs: Sequence[tuple[str, str]], rate: float, steps: int, seed: int
) -> None:
    """Train a model on labelled pairs with MultipleNegativesRankingLoss."""
    queries, documents = map(list, zip(*pairs, strict=True))
    rows = batches(model, documents, steps, seed)
    train(model, MultipleNegativesRankingLoss(model), {"anchor": queries, "positive": documents}, rows, rate, seed)


def train(
    model: SentenceTransformer, loss: nn.Module, columns: dict[str, list[Any]], rows: list[int], rate: float, seed: int
) -> None:
    """Train a model in bfloat16 on rows of the columns, in this order and in batches of 64.

    Texts are cut to 128 tokens.
    """
    data = Dataset.from_dict({name: [column[row] for row in rows] for name, column in columns.items()})
    length, model.max_seq_length = model.max_seq_length, TRAIN_LENGTH
    options: dict[str, Any] = {"learning_rate": rate, "warmup_steps": WARM_UP, "lr_scheduler_type": "cosine"}
    options |= {"max_steps": len(rows) // BATCH, "per_device_train_batch_size": BATCH, "bf16": True, "seed": seed}
    options |= {"use_cpu": model.device.type == "cpu", "save_strategy": "no", "report_to": "none"}
    options |= {"batch_sampler": lambda rows, **how: DefaultBatchSampler(SequentialSampler(rows), **how)}
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(folder, **options)
        SentenceTransformerTrainer(model, arguments, data, loss=loss).train()
    model.max_seq_length = length


def batches(model: SentenceTransformer, texts: list[str], steps: int, seed: int, longest: int = 10**9) -> list[int]:
    """Return rows of texts, batch after batch; a batch has texts of similar lengths, to need little padding."""
    lengths = np.array([len(ids) for ids in model.tokenizer(texts, verbose=False)["input_ids"]])
    rng, found = np.random.default_rng(seed), list[np.ndarray]()
    while len(found) < steps:
        order = rng.permutation(np.flatnonzero(lengths <= longest))
        order = order[: len(order) // BATCH * BATCH]
        found += list(rng.permutation(order[np.argsort(lengths[order], kind="stable")].reshape(-1, BATCH)))
    return np.concatenate(found[:steps]).tolist()
