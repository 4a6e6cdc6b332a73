"""A record that cannot be: one line wherever it is read."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_dimreduce import DimReduce, FitRecord, Head, reduce_model, save_portable
from st_dimreduce.models.load import load_model
from tests.helpers.command import run
from tests.helpers.folders import trainable
from tests.helpers.tiny import SENTENCES

WRONG = {"0": 0, "negative": -1, "infinite": float("inf"), "huge": 10**400, "a word": "long", "a list": [1.0]}


def say(file, value, *keys):
    """Put a mean norm into a JSON file."""
    content = inner = json.loads(file.read_text())
    for key in keys:
        inner = inner[key]
    inner["mean_norm"] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_a_mean_norm_that_cannot_be_is_one_line_wherever_it_is_read(value, tiny, tiny_path, tmp_path):
    reduced = reduce_model(tiny, SENTENCES, 8)
    Head.from_model(reduced).save(tmp_path / "head")
    save_portable(reduced, tmp_path / "portable")
    (tmp_path / "module").mkdir()
    DimReduce(8, 4, record=FitRecord(mean_norm=1.0)).save(str(tmp_path / "module"))
    trainable(tiny, 8).save(str(tmp_path / "trained"))
    say(tmp_path / "head" / "st_dimreduce.json", value)
    say(tmp_path / "module" / "config.json", value, "record")
    say(tmp_path / "portable" / "st_dimreduce.json", value)
    say(tmp_path / "portable" / "config.json", value, "st_dimreduce")
    (dense,) = (tmp_path / "trained").glob("*DimReduce")
    say(dense / "config.json", value, "record")
    np.save(tmp_path / "x.npy", np.ones((9, 32), np.float32))
    plain = SentenceTransformer(str(tmp_path / "portable"), device="cpu")
    ways = [
        lambda: Head.load(tmp_path / "head"),
        lambda: DimReduce.load(str(tmp_path / "module")),
        lambda: Head.load(tmp_path / "module"),
        lambda: Head.load(tmp_path / "portable"),
        lambda: DimReduce.from_model(plain),
        lambda: Head(np.eye(3)).with_record(mean_norm=value),
        lambda: Head(np.eye(3), record=FitRecord(mean_norm=value)),
        lambda: load_model(tmp_path / "trained", trust_remote_code=True),
    ]
    for number, way in enumerate(ways):
        with pytest.raises(ValueError, match=r"mean_norm .*: expected a number|NaN or Infinity|Infinity") as error:
            way()
        assert "\n" not in str(error.value), number
    for command in (
        ("transform", tmp_path / "head", tmp_path / "x.npy", tmp_path / "y.npy"),
        ("transform", tmp_path / "portable", tmp_path / "x.npy", tmp_path / "y.npy"),
        ("attach", tmp_path / "head", tiny_path, "--output", tmp_path / "attached"),
        ("export", tmp_path / "portable", "--output", tmp_path / "exported"),
    ):
        done = run(*command)
        assert done.exit_code == 2, (command, done.output)
        assert "Traceback" not in done.output
        assert isinstance(done.exception, SystemExit)
    assert not {"y.npy", "attached", "exported"} & {path.name for path in tmp_path.iterdir()}
