"""Heads attached to the models that their vectors came from."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_dimreduce import DimReduce, FitRecord, Head
from st_dimreduce.models.encoder import Encoder
from tests.helpers.tiny import SENTENCES


def test_attach_checks_the_width_and_can_stay_trainable(tiny):
    head = Head(np.eye(4, 32), record=FitRecord(mean_norm=1.0))
    message = "the head takes 31 dimensions, the model gives 32: attach it to the model that"
    with pytest.raises(ValueError, match=message):
        Head(np.eye(4, 31), record=head.record).attach(tiny)
    model = head.attach(tiny, trainable=True)
    assert type(model[2]) is DimReduce
    assert model.encode(["a cat"]).shape == (1, 4)
    assert Head.from_model(model).attach(tiny).encode(["a cat"]).shape == (1, 4)


def test_a_head_whose_mean_norm_is_not_known_is_not_attached(tiny):
    with pytest.raises(ValueError, match="the head's record has no mean_norm"):
        Head(np.eye(4, 32)).attach(tiny)


def test_the_model_knows_the_norm_of_its_own_vectors(tiny):
    head = Head.fit(tiny.encode(SENTENCES), 4)
    found = Head.from_model(head.attach(tiny)).record.mean_norm
    body = SentenceTransformer(modules=list(tiny)[:2], device="cpu")
    assert found == pytest.approx(Encoder(body, 32).probe_norm)
    assert head.record.mean_norm == pytest.approx(1)
    assert found != pytest.approx(1, rel=0.5)
