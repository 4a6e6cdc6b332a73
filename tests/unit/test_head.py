"""A head by itself: what it computes, what its record says, and its folder."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense

from st_dimreduce import DimReduce, FitRecord, Head, Pairs, Precision, Size, Summary, UserError, save_portable
from st_dimreduce.codes.fingerprint import same_head
from st_dimreduce.codes.precision import quantize
from st_dimreduce.fitting.fit import fit_head
from st_dimreduce.record import record_comment, record_in_card
from tests.helpers.tiny import SENTENCES

RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.standard_normal((3, 8)).astype(np.float32), RNG.standard_normal(3).astype(np.float32)
X = RNG.standard_normal((20, 8)).astype(np.float32)
RECORD = FitRecord(
    precision="int4",
    mean_norm=5.5,
    nested=(2, 3),
    method="subspace",
    objective="quality",
    vectors=100,
    cloze_pairs=0,
    whitening=0.1,
    rotation="itq",
    gain=0.03,
    seed=0,
    license=["mit", "apache-2.0"],
    versions={"numpy": "2"},
    choice={"best": {"out_features": 3}},
    figures={"rows": [1]},
    reference={"vectors": 300},
)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("bias", [None, BIAS])
@pytest.mark.parametrize("activation", ["Tanh", "Identity"])
@pytest.mark.parametrize("way", ["forward", "transform"])
@pytest.mark.parametrize("count", [20, 9000])  # rows of one batch, and of several
def test_reduces_arrays_and_tensors_alike(bias, activation, way, count):
    reduce, rows = getattr(Head(WEIGHT, bias, activation), way), np.resize(X, (count, 8))
    expected = rows.astype(np.float64) @ WEIGHT.T + (0 if bias is None else bias)
    expected = np.tanh(expected) if activation == "Tanh" else expected
    expected = unit(expected) if way == "transform" else expected
    for dtype in (np.float16, np.float32, np.float64):
        found = reduce(rows.astype(dtype))
        assert (found.dtype, found.shape) == (np.float32, (count, 3))
        assert np.allclose(found, expected, atol=1e-2 if dtype == np.float16 else 1e-5)
    found = reduce(torch.from_numpy(rows).requires_grad_())
    assert isinstance(found, torch.Tensor)
    assert not found.requires_grad
    assert found.device.type == "cpu"
    assert np.allclose(found, expected, atol=1e-5)
    assert np.allclose(reduce(torch.from_numpy(rows).bfloat16()), expected, atol=0.1)


def test_a_tensor_stays_on_its_device():
    assert Head(WEIGHT).forward(torch.empty((5, 8), device="meta")).device.type == "meta"


@pytest.mark.parametrize("shape", [(8,), (3, 7), (2, 3, 8)])
@pytest.mark.parametrize("way", ["forward", "transform", "encode"])
def test_embeddings_of_a_wrong_shape(shape, way):
    with pytest.raises(ValueError, match=r"expected \(n, 8\)"):
        getattr(Head(WEIGHT), way)(np.zeros(shape, np.float32))


@pytest.mark.parametrize("way", ["forward", "transform", "encode"])
def test_masked_entries_are_refused(way):
    with pytest.raises(ValueError, match="the embeddings: got a masked array with 1 masked entries: drop those rows"):
        getattr(Head(WEIGHT), way)(np.ma.masked_equal(X, X[3, 3]))


STORED = [
    (np.float64, 1e-29),
    (np.float64, 1e29),
    (np.float64, 1e300),
    (np.float32, 1e-29),
    (np.float32, 1e29),
    (np.float32, 100),
    (np.float16, 1000),
]


@pytest.mark.parametrize(("kind", "norm"), STORED)
@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("bias", [None, BIAS])
def test_stored_vectors_are_reduced_as_those_of_the_norm_that_the_head_is_for(kind, norm, form, bias):
    rows = unit(np.resize(X, (5000, 8)))  # several batches
    stored = (norm * rows.astype(np.float64)).astype(kind)
    head = Head(WEIGHT, bias, record=RECORD)
    reduced = head.transform(form(stored))
    atol = 1e-2 if kind == np.float16 else 1e-5
    assert np.allclose(reduced, unit(head.forward(RECORD.mean_norm * rows)), atol=atol)
    assert np.allclose(DimReduce.from_head(head).to_head().transform(form(stored)), reduced, atol=1e-6)
    assert np.allclose(np.linalg.norm(reduced, axis=1), 1, atol=1e-6)


def test_zeros_stay_zeros_and_a_head_without_a_mean_norm_scales_nothing():
    assert (Head(WEIGHT, record=RECORD).transform(np.zeros((2, 8), np.float16)) == 0).all()
    assert (Head(WEIGHT, record=RECORD).transform(torch.zeros((2, 8))) == 0).all()
    for scale in (1, 30):
        expected = unit(Head(WEIGHT, BIAS).forward(scale * X))
        assert np.allclose(Head(WEIGHT, BIAS).transform(scale * X), expected, atol=1e-6)
    head = Head(WEIGHT, record=RECORD)
    assert not np.allclose(head.forward(30 * X), head.forward(X)), "what a model computes depends on the norm"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": np.zeros(3)}, r"weight has shape \(3,\), expected \(out_features, in_features\)"),
        ({"weight": np.zeros((4, 3))}, r"weight has shape \(4, 3\)"),
        ({"weight": np.zeros((0, 3))}, r"weight has shape \(0, 3\)"),
        ({"weight": np.ma.masked_equal(np.eye(2, 3), 1)}, "the values of weight: got a masked array with 2 masked"),
        ({"weight": np.full((2, 3), np.nan)}, "the weights hold NaN or infinity"),
        ({"weight": np.zeros((2, 3)), "bias": np.zeros(3)}, r"bias has shape \(3,\), expected \(2,\)"),
        ({"weight": np.zeros((2, 3)), "activation": "GELU"}, "ends in GELU, expected Tanh or Identity"),
    ],
)
def test_weights_that_make_no_head(arguments, message):
    with pytest.raises(ValueError, match=message):
        Head(**arguments)


def test_a_record_is_read_as_it_was_written():
    written = json.loads(json.dumps(RECORD.to_dict()))
    assert FitRecord.from_dict(written) == RECORD
    assert FitRecord.from_dict(written | {"of a later version": 1, "gain": None}).gain is None
    assert RECORD.to_dict().keys() - RECORD.to_dict(large=False).keys() == {"choice", "figures", "reference"}
    assert FitRecord().to_dict() == {"precision": "float32"}
    with pytest.raises(FrozenInstanceError):
        RECORD.seed = 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"precision": "int7"}, "unknown precision 'int7': choose from float32"),
        ({"precision": 5}, "unknown precision 5"),
        ({"mean_norm": "long"}, "says mean_norm 'long': expected a number"),
        ({"mean_norm": 0}, "says mean_norm 0: expected a number greater than 0"),
        ({"mean_norm": -1.5}, "says mean_norm -1.5: expected a number greater than 0"),
        ({"mean_norm": float("inf")}, "says mean_norm huge: expected a number greater than 0"),
        ({"mean_norm": float("nan")}, "says mean_norm huge: expected a number greater than 0"),
        ({"mean_norm": 1e-40}, "says mean_norm 1e-40: expected a number greater than 0, 1e-30 to 1e\\+30"),
        ({"mean_norm": 10**400}, "says mean_norm huge: expected a number greater than 0, 1e-30 to 1e\\+30"),
        ({"mean_norm": [1.0]}, r"says mean_norm \[1.0\]: expected a number"),
        ({"gain": float("nan")}, "says gain huge: expected a finite number"),
        ({"whitening": 10**400}, "says whitening huge: expected a finite number"),
        ({"nested": [8, "x"]}, "says nested .*: expected sizes of at least 1"),
        ({"vectors": 1.5}, "says vectors 1.5: expected a whole number"),
        ({"seed": True}, "says seed 1: expected a whole number"),
        ({"figures": [1]}, "says figures .*: expected an object"),
        ({"reference": "none"}, "says reference .*: expected an object"),
        ({"base_model": ["a"]}, "says base_model .*: expected a string"),
    ],
)
def test_a_record_that_is_wrong(content, message):
    with pytest.raises(ValueError, match=message) as error:
        FitRecord.from_dict(content)
    assert len(str(error.value)) < 300


def test_every_field_of_the_record_is_documented():
    for each in fields(FitRecord):
        assert f" {each.name}" in FitRecord.__doc__, each.name


@pytest.mark.parametrize("bias", [None, BIAS])
@pytest.mark.parametrize("activation", ["Tanh", "Identity"])
def test_a_folder_holds_all_of_a_head(bias, activation, tmp_path):
    head = Head(WEIGHT, bias, activation, RECORD)
    head.save(tmp_path / "head")
    assert sorted(path.name for path in (tmp_path / "head").iterdir()) == [
        "config.json",
        "model.safetensors",
        "st_dimreduce.json",
    ]
    read = Head.load(tmp_path / "head")
    assert np.array_equal(read.forward(X), head.forward(X))
    assert (read.record, read.activation, read.fingerprint) == (RECORD, activation, head.fingerprint)
    dense, module = Dense.load(str(tmp_path / "head")), DimReduce.load(str(tmp_path / "head"))
    for form in (dense, module.eval()):
        embedding = form({"sentence_embedding": torch.from_numpy(X)})["sentence_embedding"]
        assert np.allclose(embedding.detach(), head.forward(X), atol=1e-6)


def test_the_folder_of_a_module_is_that_of_a_head(tmp_path):
    module = DimReduce(8, 3, record=RECORD)
    module.save(str(tmp_path))
    read = Head.load(tmp_path)
    assert read.record == RECORD
    assert np.array_equal(read.forward(X), module.to_head().forward(X))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_float_are_read_as_float32(dtype, tmp_path):
    module = DimReduce(8, 3).to(dtype)
    module.save(str(tmp_path))
    read = Head.load(tmp_path)
    assert np.array_equal(read.weight, module.linear.weight.detach().float().numpy())
    assert np.array_equal(read.bias, module.linear.bias.detach().float().numpy())


def test_save_replaces_only_a_head(tmp_path):
    head = Head(WEIGHT, record=RECORD)
    DimReduce(5, 2).to_head().save(tmp_path / "head")
    with pytest.raises(FileExistsError, match=r"head exists: .*overwrite=True \(--force\)"):
        head.save(tmp_path / "head")
    head.save(tmp_path / "head", overwrite=True)
    assert Head.load(tmp_path / "head").in_features == 8
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("three years")
    with pytest.raises(FileExistsError, match=r"holds no st_dimreduce.json: .*never replaced"):
        head.save(tmp_path / "thesis", overwrite=True)


def test_for_another_norm_the_outputs_are_the_same():
    head = fit_head(Summary.of(X), 3).for_norm(1.0)
    assert head.record.mean_norm == 1
    longer = head.for_norm(7.0)
    assert longer.record.mean_norm == 7
    assert np.allclose(longer.forward(7 * unit(X)), head.forward(unit(X)), atol=1e-6)
    assert np.allclose(head.for_norm(7.0).for_norm(1.0).weight, head.weight)
    with pytest.raises(ValueError, match=r"the head's record has no mean_norm.*: set it"):
        Head(WEIGHT).for_norm(7.0)
    assert Head(WEIGHT).with_record(mean_norm=1.0).for_norm(2.0).record.mean_norm == 2
    for norm in (1e-30, 1e30):
        assert np.allclose(head.for_norm(norm).for_norm(1.0).weight, head.weight)
    with pytest.raises(ValueError, match="mean_norm 0: expected a number greater than 0"):
        head.for_norm(0.0)


def test_the_fingerprint_tells_heads_apart():
    heads = [
        Head(WEIGHT),
        Head(WEIGHT, np.zeros(3)),
        Head(WEIGHT, activation="Identity"),
        Head(WEIGHT + np.float32(1e-6)),
        Head(WEIGHT[:2]),
        Head(WEIGHT, record=RECORD),
        Head(WEIGHT, record=FitRecord(mean_norm=5.6)),
    ]
    assert len({head.fingerprint for head in heads}) == len(heads)
    assert Head(WEIGHT, record=FitRecord(mean_norm=5.5)).fingerprint == Head(WEIGHT.copy(), record=RECORD).fingerprint


def test_a_head_needs_neither_torch_nor_sentence_transformers(tmp_path):
    Head(WEIGHT, BIAS, record=RECORD).save(tmp_path / "head")
    np.save(tmp_path / "x.npy", X)
    code = """
import sys
import numpy as np
from st_dimreduce import Codes, Head, Summary
x = np.load(sys.argv[1] + "/x.npy")
head = Head.load(sys.argv[1] + "/head")
assert head.precision == "int4"
head.encode(x).save(sys.argv[1] + "/codes.npy")
codes = Codes.load(sys.argv[1] + "/codes.npy")
assert codes.search(head.transform(x[:2]), 1)[1].shape == (2, 1)
assert codes.decode().shape == (20, 3)
Head.fit(Summary.of(x), 3).save(sys.argv[1] + "/other")
Head.fit(sys.argv[1] + "/x.npy", 3)
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"torch", "transformers", "sentence_transformers", "huggingface_hub", "pyarrow"}, loaded
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_record_in_a_model_card_survives_what_markdown_does():
    record = FitRecord(precision="binary", base_model="a/b", license=["a-->b"])
    card = f"# Title\n\ntext -->\n{record_comment(record)}\n"
    assert record_in_card(card) == record
    assert record_in_card("# Title") == record_in_card(None) == FitRecord()
    deep = '{"a": ' + 100_000 * "[" + "]" * 100_000 + "}"
    for content in ('{"precision": "int7"}', '{"mean_norm": 0}', f'{{"mean_norm": {10**400}}}', "{no JSON}", deep):
        assert record_in_card(f"<!-- st_dimreduce {content} -->") == FitRecord()


def test_vectors_a_file_and_a_summary_of_them_give_one_head(tmp_path):
    rows = RNG.standard_normal((400, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    expected = fit_head(Summary.of(rows), 4)
    sources = [rows, torch.from_numpy(rows), tmp_path / "x.npy", str(tmp_path / "x.npy"), Summary.of(rows)]
    for source in [*sources, [rows[:100], rows[100:]], iter([rows])]:
        head = Head.fit(source, 4)
        assert type(head) is Head
        assert (head.in_features, head.out_features, head.record.mean_norm) == (16, 4, expected.record.mean_norm)
        assert np.allclose(head.transform(rows), expected.transform(rows), atol=1e-5)


def test_a_fit_takes_every_size_and_pairs():
    rows = RNG.standard_normal((600, 16)).astype(np.float32)
    assert Head.fit(rows, Size(bytes=4)).record.choice["best"]["bytes_per_vector"] <= 4
    assert Head.fit(rows, Size(nested=(4, 8))).record.nested == (4, 8)
    assert Head.fit(rows, Size(8, precision="int2")).precision == "int2"
    assert Head.fit(rows, 4, strength=0.5).record.strength == 0.5
    pairs = Pairs(rows[:64] + 0.1, rows[:64])
    assert Head.fit(rows, 4, pairs=pairs).record.labelled_pairs == 64
    weights = [Head.fit(rows, 4, seed=seed).weight for seed in (0, 0, 1)]
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


@pytest.mark.parametrize("bad", [0, np.nan, np.inf])
def test_vectors_without_a_direction_are_refused_or_left_out(bad):
    rows = RNG.standard_normal((300, 16)).astype(np.float32)
    spoilt = np.insert(rows, 7, bad, axis=0)
    with pytest.raises(UserError, match=r"the vector in row 7 .*: drop or repair it.*on_bad_row='zero'"):
        Head.fit(spoilt, 4)
    head, expected = Head.fit(spoilt, 4, on_bad_row="zero"), Head.fit(rows, 4)
    assert head.record.vectors == 300
    assert np.allclose(head.weight, expected.weight, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (X[0], {}, r"shape \(8,\)"),
        (np.ma.masked_less(X, -1), {}, "got a masked array with"),
        (X, {"size": 9}, "^dim=9: choose a size from 1 to 8, that of the vectors$"),
        (X, {"size": Size(bytes=2)}, "20 vectors are too few to hold any out for a choice: give 60, or a dimension"),
        (X, {"objective": "speed"}, "unknown objective 'speed'"),
        (X, {"on_bad_row": "drop"}, "unknown on_bad_row 'drop': choose from raise, zero"),
        (X, {"size": 2, "pairs": Pairs(X, X[::-1]), "objective": "fidelity"}, "pairs train for quality"),
        (np.repeat(X[:1], 5, axis=0), {"size": 2}, "all 5 vectors point the same way: give vectors of texts that d"),
        (np.zeros((0, 8)), {}, "there is no vector in the source"),
    ],
)
def test_what_cannot_be_fitted_on(source, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        Head.fit(source, **{"size": 3, **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("precision", [None, *Precision, "int2"])
def test_codes_are_the_quantised_transform(precision, form):
    head = Head(WEIGHT, record=RECORD)
    rows = 30 * X
    codes = head.encode(form(rows), precision)
    expected = Precision.INT4 if precision is None else Precision(precision)
    assert (codes.precision, codes.out_features, codes.head) == (expected, 3, head.fingerprint)
    assert np.array_equal(codes.values, quantize(np.asarray(head.transform(form(rows))), expected))
    codes.origin.check(head.for_norm(2.0).fingerprint, "codes")


def test_float_codes_are_the_unit_rows_of_transform():
    head = Head(WEIGHT, BIAS, record=RECORD)
    rows = head.transform(50 * X)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert np.allclose(head.encode(50 * X, "float32").values, rows, atol=1e-6)
    assert np.array_equal(head.encode(50 * X).search(rows)[1], head.encode(X).search(head.transform(X))[1])


def test_a_head_comes_back_from_its_folder_and_from_every_form_of_its_model(tiny, tmp_path):
    head = Head.fit(tiny.encode(SENTENCES), Size(8, precision="int4"))
    head.save(tmp_path / "head")
    loaded = Head.load(tmp_path / "head")
    assert type(loaded) is Head
    assert loaded.record == head.record
    assert np.array_equal(loaded.weight, head.weight)
    model = head.attach(tiny)
    save_portable(model, tmp_path / "portable")
    model.save_pretrained(str(tmp_path / "stock"))
    trained = head.attach(tiny, trainable=True)
    for again in (
        Head.from_model(model),
        Head.from_model(trained),
        Head.from_model(SentenceTransformer(str(tmp_path / "portable"), device="cpu")),
        Head.from_model(SentenceTransformer(str(tmp_path / "stock"), device="cpu")),
        Head.load(tmp_path / "portable"),
        Head.load(tmp_path / "stock"),
    ):
        assert type(again) is Head
        assert same_head(again.fingerprint, head.fingerprint)
        assert (again.precision, again.record.seed, again.record.vectors) == ("int4", 0, len(SENTENCES))
        assert again.record.mean_norm == pytest.approx(Head.from_model(model).record.mean_norm)
        vectors = tiny.encode(SENTENCES)
        assert np.allclose(again.transform(vectors), head.transform(vectors), atol=1e-4)


def test_what_holds_no_head(tiny, tmp_path):
    with pytest.raises(UserError, match="the model ends in Transformer, it has no head"):
        Head.from_model(tiny)
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(UserError, match="holds no head: expected the folder of a head or of a reduced") as error:
            Head.load(path)
        assert "\n" not in str(error.value)
