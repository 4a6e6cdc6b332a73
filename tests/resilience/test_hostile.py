"""Hostile folders: each is read or refused within seconds, and nothing that they name is run."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from st_dimreduce import DimReduce, Summary, check, reduce_model, save_portable
from st_dimreduce.models.load import load_head, load_model
from tests.helpers.hostile import CANARY, NAMES, NUMBERS, Boom, all_places, put
from tests.helpers.tiny import SENTENCES

SECONDS = 5  # of a machine with other things to do; one that is idle takes a fraction of one
BYTES = 2**30
FILES = ["modules.json", "config.json", "tokenizer_config.json", "sentence_bert_config.json", "tokenizer.json"]
FILES += ["config_sentence_transformers.json", "1_Pooling/config.json", "2_Dense/config.json", "st_dimreduce.json"]
WEIGHTS = ["model.safetensors", "2_Dense/model.safetensors"]
VALUES = st.sampled_from([*NAMES, *NUMBERS, None, True, False, [], {}, [[]], [{}], {"a": {"b": []}}, ["cls", "mean"]])
BOMBS = [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe{}", b"[" * 10**6, b'{"a":' * 10**5, b" " * 2**25, b"1" * 10**6]
BOMBS += ["{}".encode("utf-16"), b"\xef\xbb\xbf{}", b'{"in_features": 1e999}', b'{"a": 1, "a": 2}', bytes(1000)]
HEADERS = [b"\xff" * 8, (2**40).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"{}", b"PK\x03\x04", b"\x80\x04."]
HEADERS += [len(text).to_bytes(8, "little") + text for text in (
    b'{"linear.weight":{"dtype":"F32","shape":[1000000000000,1000000000000],"data_offsets":[0,4]}}    ',
    b'{"linear.weight":{"dtype":"F32","shape":[8,32],"data_offsets":[0,1024]}}',
    b'{"linear.weight":{"dtype":"F32","shape":[-8,32],"data_offsets":[0,1024]}}',
    b'{"linear.weight":{"dtype":"Q9","shape":[],"data_offsets":[1024,0]}}',
    b'{"a":' * 10**5,
)]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tiny_path, tmp_path_factory):
    place = tmp_path_factory.mktemp("hostile")
    reduced = reduce_model(tiny_path, SENTENCES, 8)
    save_portable(reduced, place / "model")
    DimReduce(32, 8).to_head().save(place / "head")
    summary = Summary.of(reduced.encode(SENTENCES))
    summary.save(place / "summary")
    load_model(place / "model")  # what is imported on the way is imported now
    return place


def harm_json(data, path):
    if data.draw(st.booleans(), "a bomb"):
        path.write_bytes(data.draw(st.sampled_from(BOMBS) | st.binary(max_size=200), "content"))
        return
    content = json.loads(path.read_text())
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        at = data.draw(st.sampled_from(list(all_places(content))), "place")
        content = put(content, at, copy.deepcopy(data.draw(VALUES, "value")))
    path.write_text(json.dumps(content))


def harm_bytes(data, path, canary):
    whole = path.read_bytes()
    way = data.draw(st.sampled_from(["cut", "flip", "header", "pickle", "bin"]), "way")
    if way == "cut":
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole)), "length")])
    elif way == "flip":
        changed = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 8), "flips")):
            changed[data.draw(st.integers(0, len(changed) - 1), "where")] ^= data.draw(st.integers(1, 255), "bits")
        path.write_bytes(changed)
    elif way == "header":
        path.write_bytes(data.draw(st.sampled_from(HEADERS), "header") + bytes(1024))
    else:
        name = "pytorch_model.bin" if way == "bin" else path.name
        path.unlink()
        if data.draw(st.booleans(), "torch"):
            torch.save({"linear.weight": Boom(canary)}, path.with_name(name))
        else:
            path.with_name(name).write_bytes(pickle.dumps(Boom(canary)) + bytes(2000))


def harm_links(data, folder):
    name = data.draw(st.sampled_from([*FILES, *WEIGHTS, "1_Pooling", "2_Dense", "tokenizer.json"]), "name")
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    target = data.draw(
        st.sampled_from(["/etc/passwd", "/etc", "/dev/zero", "..", "../../outside", name, "fifo"]), "target"
    )
    if target == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(target)


def fix(folder):
    check(folder, fix=True)


def survives(call, *arguments):
    begin = time.monotonic()
    try:
        call(*arguments)
    except (ValueError, OSError) as error:
        assert str(error), "an error says what is wrong"
        assert call is fix or "\n" not in str(error), error
    assert time.monotonic() - begin < SECONDS, f"{call.__name__} took {time.monotonic() - begin:.1f} s"


def listing(place):
    return {path.relative_to(place): path.lstat().st_size for path in place.rglob("*")}


def memory(name):
    """Bytes of this process's memory, as Linux names them: VmRSS now, VmHWM at its peak."""
    return 1024 * int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])


QUIET = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@QUIET
@given(data=st.data())
def test_a_hostile_model_is_read_or_refused(folders, tmp_path_factory, data):
    place = tmp_path_factory.mktemp("place")
    canary, folder = place / "canary-sang", place / "models" / "model"
    shutil.copytree(folders / "model", folder)
    (place / "outside").mkdir()
    for name in ("canary.py", "modeling_canary.py"):
        (folder / name).write_text(CANARY.format(str(canary)) + "\nclass Boom: pass\n")
    harmed = data.draw(st.lists(st.sampled_from([*FILES, *WEIGHTS]), min_size=1, max_size=2, unique=True), "files")
    for name in harmed:
        if name in WEIGHTS:
            harm_bytes(data, folder / name, str(canary))
        else:
            harm_json(data, folder / name)
    if data.draw(st.integers(0, 3), "links") == 0:
        harm_links(data, folder)
    before = listing(place)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    used = memory("VmRSS")
    for call in (check, load_model, load_head):
        survives(call, folder)
    assert listing(place) == before, "something was written"
    survives(fix, folder)
    assert {path for path in listing(place) if path.parts[:2] != ("models", "model")} == {
        path for path in before if path.parts[:2] != ("models", "model")
    }, "something was written elsewhere"
    assert not canary.exists(), "code was run"
    grown = memory("VmHWM") - used
    assert grown < BYTES, f"{grown:,} bytes"
    shutil.rmtree(place)


@QUIET
@given(data=st.data())
def test_a_hostile_head_or_summary_is_read_or_refused(folders, tmp_path_factory, data):
    place = tmp_path_factory.mktemp("place")
    canary = place / "canary-sang"
    shutil.copytree(folders / "head", place / "head")
    shutil.copy(folders / "summary", place / "summary")
    if data.draw(st.booleans(), "settings"):
        harm_json(data, place / "head" / data.draw(st.sampled_from(["config.json", "st_dimreduce.json"]), "file"))
    else:
        harm_bytes(data, place / "head" / "model.safetensors", str(canary))
    harm_bytes(data, place / "summary", str(canary))
    before = listing(place)
    survives(load_head, place / "head")
    survives(Summary.load, place / "summary")
    assert listing(place) == before, "something was written"
    assert not canary.exists(), "code was run"
    shutil.rmtree(place)


def test_what_harms_here_would_harm_a_reader_that_trusts(folders, tmp_path):
    """The canary does sing where a pickle is trusted: the tests above are able to fail."""
    with pytest.raises(Exception):  # noqa: B017, whatever it is
        torch.nn.Linear(1, 1).load_state_dict(pickle.loads(pickle.dumps(Boom(str(tmp_path / "canary")))))  # noqa: S301
    assert (tmp_path / "canary").exists()
    shutil.copytree(folders / "model", tmp_path / "model")
    (tmp_path / "model" / "canary.py").write_text(CANARY.format(str(tmp_path / "second")) + "\nclass Boom: pass\n")
    entries = json.loads((tmp_path / "model" / "modules.json").read_text())
    entries[2]["type"] = "canary.Boom"
    Path(tmp_path / "model" / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(AttributeError):
        SentenceTransformer(str(tmp_path / "model"), trust_remote_code=True, device="cpu")
    assert (tmp_path / "second").exists()
    (tmp_path / "second").unlink()
    survives(load_model, tmp_path / "model")
    assert not (tmp_path / "second").exists()
