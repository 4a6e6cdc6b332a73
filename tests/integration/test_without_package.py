"""Portable folders load where this package cannot be imported."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from st_dimreduce import reduce_model, save_portable
from tests.helpers.environments import WITHOUT_US
from tests.helpers.tiny import SENTENCES, trainable

CONSUMER = f"""{WITHOUT_US}
import numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
np.save(sys.argv[2], model.encode(sys.argv[3:]))
"""


def encode_elsewhere(path, texts, tmp_path):
    out = tmp_path / "vectors.npy"
    subprocess.run([sys.executable, "-c", CONSUMER, str(path), str(out), *texts], check=True, timeout=120)
    return np.load(out)


@pytest.mark.parametrize("form", [lambda model: model, trainable])
def test_loads_where_the_package_cannot_be_imported(tiny, tmp_path, form):
    reduced = form(reduce_model(tiny, SENTENCES, 8))
    save_portable(reduced, tmp_path / "portable")
    assert np.array_equal(
        encode_elsewhere(tmp_path / "portable", SENTENCES[:5], tmp_path), reduced.encode(SENTENCES[:5])
    )


def test_the_plug_in_form_does_not_load_there(tiny, tmp_path):
    trainable(reduce_model(tiny, SENTENCES, 8)).save_pretrained(str(tmp_path / "plug-in"))
    with pytest.raises(subprocess.CalledProcessError):
        encode_elsewhere(tmp_path / "plug-in", SENTENCES[:1], tmp_path)


def test_the_real_model_loads_there(minilm, texts, tmp_path):
    reduced = reduce_model(minilm, texts, 128)
    save_portable(reduced, tmp_path / "portable")
    vectors = encode_elsewhere(tmp_path / "portable", texts[:10], tmp_path)
    assert vectors.shape == (10, 128)
    assert np.array_equal(vectors, reduced.encode(texts[:10]))
