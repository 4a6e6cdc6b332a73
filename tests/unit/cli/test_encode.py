"""``st-dimreduce encode`` and ``search``, ``--json``, and the exit status of a share that is not kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import typer

from st_dimreduce import Codes, FitRecord, Size, reduce_model
from st_dimreduce.cli import app
from st_dimreduce.cli.options import cautions
from st_dimreduce.codes.origin import beside
from st_dimreduce.models import encode_texts
from st_dimreduce.models.encode_texts import encode_file, search_codes
from st_dimreduce.vectors.sinks import size_of
from tests.helpers.command import run
from tests.helpers.disk import content
from tests.helpers.tiny import SENTENCES


@pytest.fixture
def model(tiny):
    return reduce_model(tiny, SENTENCES, Size(8, precision="int4"))


@pytest.fixture
def folder(model, tmp_path):
    """A folder with a reduced model, ``small``, and ``texts.txt``."""
    model.save_pretrained(str(tmp_path / "small"))
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES))
    return tmp_path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".npy", ""])
@pytest.mark.parametrize("precision", [None, "float32", "binary"])
def test_texts_are_stored_as_codes_and_found(suffix, precision, model, tmp_path):
    sink = tmp_path / f"codes{suffix}"
    done = encode_file(model, SENTENCES, sink, precision)
    assert (done.path, done.rows, done.bytes) == (sink, len(SENTENCES), size_of(sink))
    stored = Codes.load(sink)
    assert stored.precision == (precision or "int4")
    assert np.allclose(stored.values, Codes.of(model.encode_document(SENTENCES), stored.precision).values, atol=1e-6)
    texts = SENTENCES if suffix == ".npy" else None
    (first, second) = search_codes(model, sink, [SENTENCES[9], SENTENCES[3]], 2, texts=texts)
    assert len(first) == len(second) == 2
    if precision == "float32":
        assert (first[0].row, first[0].text) == (9, SENTENCES[9])
        assert second[0].cosine == pytest.approx(1, abs=1e-5)


@pytest.fixture
def stop(model, monkeypatch):
    """A function that encodes to a target until the third part of 16 texts; the texts asked for since are returned."""
    monkeypatch.setattr(encode_texts, "_PART_ROWS", 16)
    encode, asked = model.encode_document, []

    def stopped(texts, **options):
        asked.append(list(texts))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return encode(texts, **options)

    def stop(target):
        monkeypatch.setattr(model, "encode_document", stopped)
        with pytest.raises(KeyboardInterrupt, match="32 rows are done, the same call resumes"):
            encode_file(model, SENTENCES, target)
        del asked[3:]
        return asked

    return stop


@pytest.mark.parametrize("name", ["codes.parquet", "codes.arrow", "codes.npy", "codes"])
def test_encoding_that_was_stopped_goes_on(name, model, stop, tmp_path):
    asked = stop(tmp_path / name)
    with pytest.raises(ValueError, match="a run with another texts"):
        encode_file(model, SENTENCES[1:], tmp_path / name)
    encode_file(model, SENTENCES, tmp_path / name)
    assert sum(map(len, asked[3:])) == len(SENTENCES) - 32
    encode_file(model, SENTENCES, tmp_path / f"whole{(tmp_path / name).suffix}")
    assert content(tmp_path / name) == content(tmp_path / f"whole{(tmp_path / name).suffix}")
    (found,) = search_codes(model, tmp_path / name, ["a cat"], 1, texts=SENTENCES)
    assert found[0].text in SENTENCES


def change_length(model):
    model.max_seq_length = 4


def change_prompt(model):
    model.prompts = {"document": "the cat ", "query": ""}


def change_body(model):
    with torch.no_grad():
        next(model.parameters()).mul_(2)


def change_truncation(model):
    model.tokenizer.truncation_side = "left"


@pytest.mark.parametrize("change", [change_length, change_prompt, change_body, change_truncation])
def test_a_run_does_not_go_on_with_another_model(change, model, stop, tmp_path):
    stop(tmp_path / "codes.npy")
    change(model)
    with pytest.raises(ValueError, match=r"a run with another (model|prompt)"):
        encode_file(model, SENTENCES, tmp_path / "codes.npy")
    encode_file(model, SENTENCES, tmp_path / "codes.npy", overwrite=True)
    expected = Codes.of(model.encode_document(SENTENCES), "int4").values
    assert np.array_equal(np.load(tmp_path / "codes.npy"), expected)


def test_a_model_whose_modules_are_not_known_starts_anew(model, tmp_path, monkeypatch):
    def stopped(texts, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(encode_texts, "_PART_ROWS", 16)
    monkeypatch.setattr(encode_texts, "body_digest", lambda _: None)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=r"^$"):
        encode, left = model.encode_document, iter(range(9))
        patch.setattr(model, "encode_document", lambda *a, **b: encode(*a, **b) if next(left) < 3 else stopped(*a, **b))
        encode_file(model, SENTENCES, tmp_path / "codes.npy")
    assert not list(tmp_path.iterdir())


def test_a_model_that_truncates_is_refused(model, tmp_path):
    model.truncate_dim = 4
    with pytest.raises(ValueError, match="the model truncates its 8 dimensions to 4"):
        encode_file(model, SENTENCES, tmp_path / "codes.npy")
    assert not list(tmp_path.iterdir())


def test_codes_of_another_model_are_refused(model, tiny, tmp_path):
    encode_file(model, SENTENCES, tmp_path / "codes.npy")
    other = reduce_model(tiny, [*SENTENCES[::-1], "the cat"], 8, seed=5)
    with pytest.raises(ValueError, match="made by head"):
        search_codes(other, tmp_path / "codes.npy", ["a cat"])
    with pytest.raises(ValueError, match="holds 128 codes, but there are 3 texts"):
        search_codes(model, tmp_path / "codes.npy", ["a cat"], texts=SENTENCES[:3])
    with pytest.raises(ValueError, match="holds int4 codes, not int8"):
        search_codes(model, tmp_path / "codes.npy", ["a cat"], precision="int8")


@pytest.mark.parametrize(
    ("texts", "sink", "message"),
    [("a text", "x.npy", "there is no text"), ([], "x.npy", "there is no text"), (["a"], "x.txt", "ends in .txt")],
)
def test_what_cannot_be_encoded_is_said(texts, sink, message, model, tmp_path):
    with pytest.raises(ValueError, match=message):
        encode_file(model, texts, tmp_path / sink)
    assert not list(tmp_path.iterdir())


def test_from_texts_to_results_on_the_command_line(folder):
    codes = folder / "codes.parquet"
    done = run("encode", folder / "small", folder / "texts.txt", codes)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith(f"Encoding 128 texts with {folder / 'small'}, writing {codes}.")
    assert f"  st-dimreduce search {folder / 'small'} {codes} 'your question'" in lines
    done = run("search", folder / "small", codes, SENTENCES[5], "@" + str(folder / "texts.txt"), "--k", 2)
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"{SENTENCES[5]}\n   1  row ")
    assert len(done.output.splitlines()) == 129 * 3
    found = json.loads(run("search", folder / "small", codes, "a cat", "--json").stdout)
    assert [one["query"] for one in found["queries"]] == ["a cat"]
    assert found["queries"][0]["results"][0].keys() == {"row", "cosine", "text"}
    assert beside(codes) != codes


def commands(group, name=""):
    for each, command in sorted(group.commands.items()):
        yield from commands(command, f"{each} ") if hasattr(command, "commands") else [(name + each, command)]


@pytest.mark.parametrize(("name", "command"), commands(typer.main.get_command(app)), ids=str)
def test_every_command_has_json_an_example_and_plain_flags(name, command):
    output = run(*name.split(), "--help").output
    assert "--json" in output
    assert "<bool>" not in output
    if " " not in name or name == "index build":
        assert f"Example: st-dimreduce {name}" in " ".join(output.split())


@pytest.mark.component("ONNX Runtime")
def test_json_is_all_that_is_printed(folder):
    for arguments in (
        ("encode", folder / "small", folder / "texts.txt", folder / "codes.npy"),
        ("info", folder / "small"),
        ("info", folder / "codes.npy"),
        ("export", folder / "small", "-o", folder / "graph"),
    ):
        done = run(*arguments, "--json")
        assert done.exit_code == 0, done.output
        assert isinstance(json.loads(done.stdout), dict)
    assert json.loads(run("info", folder / "codes.npy", "--json").stdout)["head"]


@pytest.mark.parametrize(
    ("record", "texts", "said"),
    [
        (FitRecord(strength=0.5), 1000, []),
        (FitRecord(strength=0.5), 999, ["Note: 999 texts are few"]),
        (
            FitRecord(strength=0.0, objective="quality"),
            1000,
            ["Note: on these texts quality finds no more than fidelity"],
        ),
        (FitRecord(strength=0.0, objective="fidelity"), 1000, []),
        (FitRecord(strength=1.0, precision="int4"), None, ["Note: int4 codes are searched by", "database, --store"]),
        (FitRecord(strength=1.0, precision="int4", choice={"store": "faiss"}), None, []),
        (FitRecord(strength=0.0, precision="int8"), None, []),
    ],
)
def test_users_are_warned_where_they_would_be_hurt(record, texts, said):
    lines = cautions(record, texts)
    assert len(lines) == len(said), lines
    assert all(line.startswith(words) for line, words in zip(lines, said, strict=True)), lines
    assert all(len(line) <= 100 for line in lines)


def test_a_share_that_nothing_keeps_is_status_3(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(400, 16)))
    arguments = ("fit", tmp_path / "x.npy", "--keep", 0.99, "--precision", "binary")
    done = run(*arguments, "-o", tmp_path / "head")
    assert done.exit_code == 3, done.output
    assert "--keep 0.99 is not kept: the best keeps" in done.output
    assert (tmp_path / "head").is_dir()
    done = run(*arguments, "-o", tmp_path / "again", "--best-effort")
    assert (done.exit_code, "is not kept" in done.output) == (0, True)
    assert run("fit", tmp_path / "x.npy", "--keep", 0.5, "-o", tmp_path / "less").exit_code == 0
