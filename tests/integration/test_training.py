"""DimReduce under the standard trainer, with the losses people use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import (
    CosineSimilarityLoss,
    MatryoshkaLoss,
    MSELoss,
    MultipleNegativesRankingLoss,
)

from st_dimreduce import DimReduce, Head, reduce_model, save_portable
from tests.helpers.tiny import SENTENCES

pytestmark = pytest.mark.wings("fitting", "dim_reduce.py")

PAIRS = {"anchor": SENTENCES[:64], "positive": SENTENCES[64:]}
DATASETS = {
    "cosine": Dataset.from_dict({**PAIRS, "score": [0.5] * 64}),
    "ranking": Dataset.from_dict(PAIRS),
    "matryoshka": Dataset.from_dict(PAIRS),
    "mse": Dataset.from_dict({"text": SENTENCES[:64], "label": np.full((64, 8), 0.5).tolist()}),
}
LOSSES = {
    "cosine": CosineSimilarityLoss,
    "ranking": MultipleNegativesRankingLoss,
    "matryoshka": lambda model: MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), [8, 4]),
    "mse": MSELoss,
}


def arguments(folder, **settings):
    defaults = {"per_device_train_batch_size": 16, "max_steps": 3, "learning_rate": 1e-2, "save_strategy": "no"}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 1}
    return SentenceTransformerTrainingArguments(str(folder), **{**defaults, **quiet, **settings})


@pytest.fixture
def model(tiny):
    return SentenceTransformer(modules=[*list(tiny)[:2], DimReduce(32, 8)], device="cpu")


@pytest.mark.parametrize("name", LOSSES)
def test_trains_head_and_transformer(model, tmp_path, name):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    SentenceTransformerTrainer(model, arguments(tmp_path), DATASETS[name], loss=LOSSES[name](model)).train()
    after = model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert {"2.linear.weight", "2.linear.bias"} <= moved
    assert any(key.startswith("0.") for key in moved), "no gradient reached the transformer"


def test_learns(model, tmp_path):
    loss = MSELoss(model)
    target = torch.tanh(torch.linspace(-1, 1, 8)).repeat(64, 1)
    data = Dataset.from_dict({"text": SENTENCES[:64], "label": target.tolist()})

    def error():
        return np.abs(model.encode(SENTENCES[:64]) - target.numpy()).mean()

    before = error()
    SentenceTransformerTrainer(model, arguments(tmp_path, max_steps=60), data, loss=loss).train()
    assert error() < before / 3


def test_a_checkpoint_resumes(tiny, tmp_path):
    def train(folder, steps, resume):
        torch.manual_seed(0)
        model = SentenceTransformer(modules=[*list(tiny)[:2], DimReduce(32, 8, dropout=0.3)], device="cpu")
        settings = arguments(folder, max_steps=steps, save_strategy="steps", save_steps=2, lr_scheduler_type="constant")
        trainer = SentenceTransformerTrainer(
            model, settings, DATASETS["ranking"], loss=MultipleNegativesRankingLoss(model)
        )
        trainer.train(resume_from_checkpoint=resume)
        return model

    train(tmp_path / "run", 2, None)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    loaded = SentenceTransformer(str(checkpoint), trust_remote_code=True, device="cpu")
    assert loaded[2].dropout == 0.3
    resumed = train(tmp_path / "run", 4, str(checkpoint))
    assert np.isfinite(resumed.encode(SENTENCES)).all()
    assert not np.allclose(resumed.encode(SENTENCES), loaded.encode(SENTENCES), atol=1e-4)
    assert (tmp_path / "run" / "checkpoint-4").is_dir()


def test_a_fitted_head_trains_on_and_ships(tiny, tmp_path):
    model = Head.from_model(reduce_model(tiny, SENTENCES, 8)).attach(tiny, trainable=True)
    SentenceTransformerTrainer(
        model, arguments(tmp_path), DATASETS["ranking"], loss=MultipleNegativesRankingLoss(model)
    ).train()
    save_portable(model, tmp_path / "portable")
    again = SentenceTransformer(str(tmp_path / "portable"), device="cpu")
    assert np.array_equal(again.encode(SENTENCES), model.encode(SENTENCES))


@pytest.mark.parametrize("setting", ["bf16", "fp16"])
def test_mixed_precision_gradients(model, setting):
    features = model.preprocess(SENTENCES[:4])
    with torch.autocast("cpu", dtype=torch.bfloat16 if setting == "bf16" else torch.float16):
        model.train()(features)["sentence_embedding"].float().pow(2).sum().backward()
    assert torch.isfinite(model[2].linear.weight.grad).all()
    assert model[2].linear.weight.grad.abs().sum() > 0
