"""``st-dimreduce encode`` and ``search``, ``--json``, and the exit status of a share that is not kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer

from st_dimreduce import (
    DimReduce,
    FitRecord,
    Precision,
    drift,
    encode_and_reduce,
    quantize,
    reduce_model,
    search_codes,
)
from st_dimreduce.cli import app
from st_dimreduce.cli.options import cautions
from st_dimreduce.codes.origin import beside
from st_dimreduce.vectors.stored import open_codes
from tests.helpers.command import run
from tests.helpers.tiny import SENTENCES, WORDS


@pytest.fixture
def model(tiny):
    return reduce_model(tiny, SENTENCES, 8, precision="int4")


@pytest.fixture
def folder(model, tmp_path):
    """A folder with a reduced model, ``small``, and ``texts.txt``."""
    model.save_pretrained(str(tmp_path / "small"))
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES))
    return tmp_path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".npy"])
@pytest.mark.parametrize("precision", [None, "float32", "binary"])
def test_texts_are_stored_as_codes_and_found(suffix, precision, model, tmp_path):
    sink = tmp_path / f"codes{suffix}"
    done = encode_and_reduce(SENTENCES, model, sink, precision)
    assert (done.path, done.rows, done.bytes) == (sink, len(SENTENCES), sink.stat().st_size)
    stored = open_codes(sink)
    assert stored.origin.precision is Precision(precision or "int4")
    expected = quantize(model.encode_document(SENTENCES), precision or "int4")
    assert np.allclose(np.concatenate(list(stored.chunks())), expected, atol=1e-6)
    texts = SENTENCES if suffix == ".npy" else None
    (first, second) = search_codes(model, sink, [SENTENCES[9], SENTENCES[3]], 2, texts=texts)
    assert len(first) == len(second) == 2
    if precision == "float32":
        assert (first[0].row, first[0].text) == (9, SENTENCES[9])
        assert second[0].cosine == pytest.approx(1, abs=1e-5)


def test_encoding_that_was_stopped_goes_on(model, tmp_path, monkeypatch):
    monkeypatch.setattr("st_dimreduce.vectors.encode._PART_ROWS", 16)
    encode, asked = model.encode_document, []

    def stopped(texts, **options):
        asked.append(len(texts))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return encode(texts, **options)

    monkeypatch.setattr(model, "encode_document", stopped)
    with pytest.raises(KeyboardInterrupt, match="32 rows are kept"):
        encode_and_reduce(SENTENCES, model, tmp_path / "codes.parquet")
    with pytest.raises(ValueError, match="a run with another source"):
        encode_and_reduce(SENTENCES[1:], model, tmp_path / "codes.parquet")
    encode_and_reduce(SENTENCES, model, tmp_path / "codes.parquet")
    assert sum(asked[3:]) == len(SENTENCES) - 32
    (found,) = search_codes(model, tmp_path / "codes.parquet", ["a cat"], 1)
    assert found[0].text in SENTENCES


def test_texts_unlike_those_of_the_fit_are_noticed(tiny, tmp_path):
    rng = np.random.default_rng(0)
    seen, later = ([" ".join(rng.choice(WORDS[:12], 5)) for _ in range(500)] for _ in range(2))
    model = reduce_model(tiny, seen, 8)
    other = [" ".join([*rng.choice(WORDS[12:], 1)] * 5) for _ in range(300)]
    for texts, verdict in ((later, "fits"), (other, "refit")):
        found = encode_and_reduce(texts, model, tmp_path / f"{verdict}.npy").drift
        lost = {figure.name: figure.now for figure in found.figures}["variance lost"]
        expected = drift(DimReduce.from_model(model), tiny.encode_document(texts)).figures[0].now
        assert (found.vectors, found.verdict, lost) == (len(texts), verdict, pytest.approx(expected, rel=1e-3))
    assert not any(module._forward_pre_hooks for module in model)


def test_codes_of_another_model_are_refused(model, tiny, tmp_path):
    encode_and_reduce(SENTENCES, model, tmp_path / "codes.npy")
    other = reduce_model(tiny, [*SENTENCES[::-1], "the cat"], 8, seed=5)
    with pytest.raises(ValueError, match="made by head"):
        search_codes(other, tmp_path / "codes.npy", ["a cat"])
    with pytest.raises(ValueError, match="holds 128 codes, but there are 3 texts"):
        search_codes(model, tmp_path / "codes.npy", ["a cat"], texts=SENTENCES[:3])
    with pytest.raises(ValueError, match="holds int4 codes, not int8"):
        search_codes(model, tmp_path / "codes.npy", ["a cat"], precision="int8")


@pytest.mark.parametrize(
    ("texts", "sink", "message"),
    [("a text", "x.npy", "there is no text"), ([], "x.npy", "there is no text"), (["a"], "x", "has no suffix")],
)
def test_what_cannot_be_encoded_is_said(texts, sink, message, model, tmp_path):
    with pytest.raises(ValueError, match=message):
        encode_and_reduce(texts, model, tmp_path / sink)
    assert not list(tmp_path.iterdir())


def test_from_texts_to_results_on_the_command_line(folder):
    codes = folder / "codes.parquet"
    done = run("encode", folder / "small", folder / "texts.txt", codes)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith(f"Encodes 128 texts with {folder / 'small'}, writes {codes}.")
    assert f"  st-dimreduce search {folder / 'small'} {codes} 'your question'" in lines
    done = run("search", folder / "small", codes, SENTENCES[5], "@" + str(folder / "texts.txt"), "--top-k", 2)
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
