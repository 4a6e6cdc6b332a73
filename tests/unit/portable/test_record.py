"""The record of a head is found again wherever the head is saved and loaded."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Dense, StaticEmbedding
from transformers import AutoTokenizer

from st_dimreduce import DimReduce, FitRecord, Head, check, reduce_model, save_portable
from st_dimreduce.dim_reduce import keep_record
from tests.helpers.tiny import SENTENCES, make_tiny

CHOICE = {"best": {"dimensions": 8}}
FIGURES = {"documents": 2, "queries": 2, "rows": []}


@pytest.fixture(params=["transformer", "static"])
def base(request, tiny_path):
    if request.param == "transformer":
        return make_tiny(tiny_path)
    static = StaticEmbedding(AutoTokenizer.from_pretrained(tiny_path), embedding_dim=32)
    return SentenceTransformer(modules=[static], device="cpu")


def reduce(base, trainable=False):
    """Return a model reduced to 8 dimensions with a head made for int4, and the head's record."""
    fitted = Head.from_model(reduce_model(base, SENTENCES, 8))
    head = fitted.with_record(precision="int4", nested=(4, 8), choice=CHOICE, mean_norm=fitted.record.mean_norm)
    model = head.attach(base, trainable=trainable)
    record = DimReduce.from_model(model).record
    assert (record.precision, record.nested) == ("int4", (4, 8))
    assert record.mean_norm > 0
    return model, record


def without_large(record):
    return FitRecord.from_dict(record.to_dict(large=False))


def load(folder, **options):
    return SentenceTransformer(str(folder), device="cpu", **options)


def test_a_portable_folder(base, tmp_path):
    model, record = reduce(base)
    save_portable(model, tmp_path / "p", figures=FIGURES)
    content = json.loads((tmp_path / "p" / "st_dimreduce.json").read_text())
    sizes = {"in_features": 32, "out_features": 8}
    assert content == {**sizes, **record.to_dict(), "figures": FIGURES}
    head = Head.load(tmp_path / "p")
    assert head.record == FitRecord.from_dict(content)
    assert head.record.choice == CHOICE
    assert head.record.figures == FIGURES
    assert (head.precision, head.record.mean_norm) == ("int4", record.mean_norm)
    loaded = load(tmp_path / "p")
    again = DimReduce.from_model(loaded)
    assert again.record == without_large(record)
    assert again.precision == "int4"
    assert np.array_equal(again.to_head().weight, head.weight)
    loaded.save_pretrained(str(tmp_path / "copied"))
    for found in (Head.load(tmp_path / "copied"), DimReduce.from_model(load(tmp_path / "copied"))):
        assert found.record == without_large(record)


def test_a_trainable_model_saved_as_it_is_and_fixed(base, tmp_path):
    model, record = reduce(base, trainable=True)
    model.save_pretrained(str(tmp_path / "p"))
    loaded = load(tmp_path / "p", trust_remote_code=True)
    assert [type(module) for module in loaded].count(DimReduce) == 1
    for found in (Head.load(tmp_path / "p"), DimReduce.from_model(loaded)):
        assert found.record == record
    check(tmp_path / "p", fix=True)
    stock = load(tmp_path / "p")
    assert [type(module) for module in stock].count(Dense) == 1
    assert Head.load(tmp_path / "p").record == record
    assert DimReduce.from_model(stock).record == without_large(record)


def test_a_head_stacked_by_hand(tiny, tmp_path):
    """Nothing but the module knows the record, and the transformer's config has that of another head."""
    head = DimReduce(32, 8, record=FitRecord(precision="int4", mean_norm=2.5))
    model = SentenceTransformer(modules=[*list(tiny)[:2], head], device="cpu")
    model[0].auto_model.config.st_dimreduce = {"precision": "int8"}
    save_portable(model, tmp_path / "p")
    for found in (Head.load(tmp_path / "p"), DimReduce.from_model(load(tmp_path / "p"))):
        assert (found.precision, found.record.mean_norm) == ("int4", 2.5)


def test_a_folder_that_stock_sentence_transformers_saved(base, tmp_path):
    """Of a static embedding, whose config has no place for it, only the Dense in memory knows the record."""
    model, record = reduce(base)
    model.save_pretrained(str(tmp_path / "p"))
    expected = FitRecord() if isinstance(base[0], StaticEmbedding) else without_large(record)
    for found in (Head.load(tmp_path / "p"), DimReduce.from_model(load(tmp_path / "p"))):
        assert found.record == expected
    check(tmp_path / "p", fix=True)
    for found in (Head.load(tmp_path / "p"), DimReduce.from_model(load(tmp_path / "p"))):
        assert found.record == expected


@pytest.mark.parametrize("trainable", [False, True])
def test_a_trainers_checkpoint(tiny, tmp_path, trainable):
    model, record = reduce(tiny, trainable=trainable)
    settings = {"per_device_train_batch_size": 16, "max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
    arguments = SentenceTransformerTrainingArguments(str(tmp_path), **settings, **quiet)
    pairs = Dataset.from_dict({"anchor": SENTENCES[:32], "positive": SENTENCES[32:64]})
    SentenceTransformerTrainer(model, arguments, pairs, loss=MultipleNegativesRankingLoss(model)).train()
    checkpoint = tmp_path / "checkpoint-2"
    expected = record if trainable else without_large(record)
    for found in (Head.load(checkpoint), DimReduce.from_model(load(checkpoint, trust_remote_code=trainable))):
        assert found.record == expected
        assert found.precision == "int4"
    save_portable(model, tmp_path / "p")
    assert Head.load(tmp_path / "p").record == record


def test_the_record_may_be_changed(tiny, tmp_path):
    model, record = reduce(tiny)
    keep_record(model, FitRecord(precision="binary", mean_norm=record.mean_norm))
    save_portable(model, tmp_path / "p")
    assert Head.load(tmp_path / "p").precision == "binary"
    assert DimReduce.from_model(load(tmp_path / "p")).precision == "binary"
