"""Encoding once for models that share modules, and the cache of embeddings."""

from __future__ import annotations

import copy
import multiprocessing
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

from st_dimreduce import DimReduce, compare, reduce_model
from st_dimreduce.apps.search_page import Corpus
from st_dimreduce.models.cache import Cache
from st_dimreduce.models.encoding import SharedEncoder
from st_dimreduce.portable.save import save_portable
from tests.helpers.tiny import SENTENCES, make_tiny

TEXTS = [*SENTENCES, " ".join(SENTENCES[:6])]


@pytest.fixture
def encoded(monkeypatch):
    """Each call of a transformer, with the number of texts."""
    counts, forward = [], Transformer.forward

    def counting(self, features, **kwargs):
        counts.append(len(features["input_ids"]))
        return forward(self, features, **kwargs)

    monkeypatch.setattr(Transformer, "forward", counting)
    return counts


def folded(tiny):
    """A base model that ends in a linear Dense, and one with a head multiplied into it."""
    base = SentenceTransformer(modules=[*list(tiny)[:2], Dense(32, 24, activation_function=torch.nn.Identity())])
    return base, reduce_model(base, SENTENCES, 8)


@pytest.mark.parametrize("kind", ["portable", "trainable", "nested", "folded", "truncated", "prompts"])
def test_embeddings_are_those_of_encoding(tiny, tmp_path, encoded, kind):
    if kind == "prompts":
        tiny.prompts = {"query": "query : ", "document": "document : "}
    base, reduced = folded(tiny) if kind == "folded" else (tiny, None)
    if reduced is None:
        size = {"nested": (8, 16)} if kind == "nested" else {"out_features": 16}
        reduced = reduce_model(base, SENTENCES, **size, trainable=kind == "trainable")
    if kind == "truncated":
        reduced.truncate_dim = 4
    if kind == "portable":
        save_portable(reduced, tmp_path / "reduced")
        base.save_pretrained(str(tmp_path / "base"))
        base, reduced = (SentenceTransformer(str(tmp_path / name)) for name in ("base", "reduced"))
        base.encode(TEXTS[:3])  # which changes what its tokenizer says of itself
    expected = {
        role: [encode(model)(TEXTS) for model in (base, reduced)]
        for role, encode in (("document", lambda m: m.encode_document), ("query", lambda m: m.encode_query))
    }
    expected["plain"] = [model.encode(TEXTS, prompt="") for model in (base, reduced)]
    encoded.clear()
    encoder = SharedEncoder({"base": base, "reduced": reduced}, show_progress_bar=False)
    for role, (full, small) in expected.items():
        rows = encoder.encode(TEXTS, role)
        assert np.abs(rows["base"] - full).max() < 1e-5
        assert np.abs(rows["reduced"] - small).max() < 1e-5
        assert rows["reduced"].shape == small.shape
    assert sum(encoded) == 3 * len(TEXTS), "each text once per role"
    assert encoder.said() == "Encoded once, by base: reduced has the same modules below its head."
    assert encoder.seconds["reduced"] > 0


def changed(model, how):
    """A copy of a model that gives other embeddings below its head."""
    other = copy.deepcopy(model)
    if how == "weights":
        with torch.no_grad():
            next(other[0].parameters())[5, 0] += 1e-3
    elif how == "pooling":
        other[1].pooling_mode = "cls"
    elif how == "length":
        other.max_seq_length = 4
    elif how == "dtype":
        other.half()
    elif how == "prompts":
        other.prompts = {"document": "document : "}
    elif how == "tokenizer":
        other.tokenizer.add_tokens(["cat dog"])
    return other


@pytest.mark.parametrize("how", ["weights", "pooling", "length", "dtype", "prompts", "tokenizer"])
def test_a_model_that_differs_encodes_by_itself(tiny, how):
    reduced = reduce_model(tiny, SENTENCES, 16)
    assert len(SharedEncoder({"a": tiny, "b": reduced}).groups("document")) == 1
    encoder = SharedEncoder({"a": tiny, "b": changed(reduced, how)}, show_progress_bar=False)
    assert encoder.groups("document") == [["a"], ["b"]]
    assert encoder.said() == "Encoded by a; b by itself, as it has other modules below the head, or another prompt."


class Loud(Pooling):
    """A module of another package."""


def test_what_cannot_be_compared_encodes_by_itself(tiny, tmp_path):
    one, other = (SentenceTransformer(modules=[tiny[0], Loud(32, "mean"), DimReduce(32, size)]) for size in (16, 8))
    encoder = SharedEncoder({"a": one, "b": other}, show_progress_bar=False)
    assert encoder.groups("document") == [["a"], ["b"]]
    assert "modules that cannot be compared" in encoder.said()
    with pytest.warns(UserWarning, match="^nothing of a, b is kept in the cache: it has modules that cannot be told"):
        assert SharedEncoder({"a": one, "b": other}, 32, False, Cache(tmp_path)).encode(TEXTS, "query")["b"].any()
    assert not list(tmp_path.iterdir())
    tokens = SentenceTransformer(modules=[tiny[0], DimReduce(32, 8, module_input_name="token_embeddings"), Pooling(8)])
    rows = SharedEncoder({"a": tiny, "b": tokens}, show_progress_bar=False).encode(TEXTS, "document")
    assert np.abs(rows["b"] - tokens.encode(TEXTS)).max() < 1e-6


def test_compare_encodes_once_and_finds_the_same(tiny, encoded):
    models = {str(size): reduce_model(tiny, SENTENCES, size) for size in (16, 8)}
    encoded.clear()
    shared = compare(tiny, models, TEXTS, TEXTS[:9], range(9), precision="int8")
    assert sum(encoded) == len(TEXTS) + 9
    assert shared.encoded == "Encoded once, by the base model: 16 and 8 have the same below their heads."
    for row in shared.rows[1:]:
        alone = compare(changed(tiny, "copy"), models[row.name], TEXTS, TEXTS[:9], range(9), precision="int8").rows[1]
        assert (row.overlap, row.ndcg) == pytest.approx((alone.overlap, alone.ndcg), abs=0.02)
        assert row.seconds > 0


def test_compare_says_what_is_hardly_meant(tiny):
    reduced = reduce_model(tiny, SENTENCES, 16)
    with pytest.raises(ValueError, match=r"^the first model is 'reduced model' with a head: give"):
        compare(reduced, tiny, SENTENCES)
    with pytest.raises(ValueError, match="give the base model first"):
        compare(reduce_model(tiny, SENTENCES, 32), tiny, SENTENCES)
    with pytest.warns(
        UserWarning, match="^'reduced model' is the base model itself: its rows show the precisions alone$"
    ):
        compare(tiny, changed(tiny, "copy"), SENTENCES)
    with pytest.warns(UserWarning, match="^'reduced model' gives 32 dimensions, more than the base model's 16"):
        compare(reduced, changed(tiny, "weights"), SENTENCES)


def test_the_cache_encodes_nothing_twice(tiny, tmp_path, encoded):
    folder = tmp_path / "deep" / "cache"
    first = reduce_model(tiny, TEXTS, 16, cache=folder)
    files = sorted(folder.iterdir())
    assert [file.suffix for file in files] == [".npy"] * len(files)
    assert np.load(files[0], allow_pickle=False).dtype == np.float32, "any reader of .npy reads it"
    before = compare(tiny, first, TEXTS, cache=folder)
    encoded.clear()
    again = reduce_model(tiny, TEXTS, 16, cache=folder)
    assert sum(encoded) == 4, "what the mean norm is measured on"
    for module, other in zip(first, again, strict=True):
        for one, two in zip(module.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(one, two)
    encoded.clear()
    after = compare(tiny, again, TEXTS, cache=folder)
    assert sum(encoded) == 0
    assert [row.overlap for row in after.rows] == [row.overlap for row in before.rows]
    compare(tiny, again, [*TEXTS, "a new cat"], cache=folder)
    assert sum(encoded) == len(TEXTS) + 1, "other texts are other files"
    encoded.clear()
    compare(changed(tiny, "weights"), changed(again, "weights"), TEXTS, cache=folder)
    assert sum(encoded) == len(TEXTS), "another model"


def test_the_search_page_takes_the_cache(tiny, tmp_path, encoded):
    save_portable(reduce_model(tiny, SENTENCES, 16), tmp_path / "small")
    tiny.save_pretrained(str(tmp_path / "base"))
    Corpus(tmp_path / "small", TEXTS, show_progress_bar=False, cache=tmp_path / "cache")
    encoded.clear()
    options = {"base": tmp_path / "base", "show_progress_bar": False, "cache": tmp_path / "cache"}
    found = Corpus(tmp_path / "small", TEXTS, **options).search(TEXTS[0], 5)
    assert sum(encoded) <= 4 * 3 + 2, "queries alone"
    assert found["full"]["answers"][0]["document"] == 0


def test_the_search_page_encodes_once_for_models_of_one_body(tiny, tmp_path, encoded):
    for name, size in {"eight": 8, "four": 4, "trained": 8}.items():
        model = reduce_model(tiny, SENTENCES, size)
        if name == "trained":
            model[0].auto_model.embeddings.word_embeddings.weight.data.mul_(-0.5)
        save_portable(model, tmp_path / name)
    encoded.clear()
    alone = Corpus(tmp_path / "eight", TEXTS, show_progress_bar=False)
    once = sum(encoded)
    encoded.clear()
    shared = Corpus([tmp_path / "eight", tmp_path / "four"], TEXTS, show_progress_bar=False)
    assert sum(encoded) == once == len(TEXTS) + 1, "the texts, and one query to warm up"
    encoded.clear()
    found = shared.search("a cat", 5, "float32", "eight")
    assert sum(encoded) == 1, "the full model and the reduced one"
    assert [answer["document"] for answer in found["reduced"]["answers"]] == [
        answer["document"] for answer in alone.search("a cat", 5, "float32")["reduced"]["answers"]
    ]
    encoded.clear()
    trained = Corpus([tmp_path / "eight", tmp_path / "trained"], TEXTS, show_progress_bar=False)
    assert sum(encoded) == 2 * len(TEXTS) + 1
    encoded.clear()
    trained.search("a cat", model="trained")
    assert sum(encoded) == 2, "each by its own body"


def test_shared_modules_are_in_memory_once(tiny):
    again, other = copy.deepcopy(tiny), changed(tiny, "weights")
    encoder = SharedEncoder({"": tiny, "again": again, "other": other}, show_progress_bar=False)
    expected = encoder.encode(TEXTS[:5], "query")
    encoder.share_modules()
    assert again[0] is tiny[0]
    assert other[0] is not tiny[0]
    assert all(np.array_equal(encoder.encode(TEXTS[:5], "query")[name], expected[name]) for name in expected)
    some, before = encoder.of({"again"}), dict(encoder.seconds)
    assert np.allclose(some.encode(TEXTS[:5], "query")["again"], expected["again"], atol=1e-6)
    assert list(some.seconds) == ["again"]
    assert some.seconds["again"] > 0
    assert encoder.seconds == before


def rows():
    return np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other", "pickle", "folder"])
def test_a_damaged_or_foreign_file_is_encoded_again(tmp_path, damage):
    cache, asked = Cache(tmp_path), ("model", "", "document", ["a", "b"])
    cache.get(*asked, rows)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    if damage == "cut":
        file.write_bytes(whole[:-40])
    elif damage == "bit":
        file.write_bytes(whole[:130] + bytes([whole[130] ^ 1]) + whole[131:])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "other":
        Cache(tmp_path / "three").get("model", "", "document", ["a"] * 3, lambda: np.ones((3, 3), np.float32))
        file.write_bytes(next((tmp_path / "three").iterdir()).read_bytes())
    elif damage == "pickle":
        np.save(file, np.array([{}], object), allow_pickle=True)
    else:
        file.unlink()
        file.mkdir()
    with pytest.warns(UserWarning, match=r"\.npy is no file of the cache, or damaged \(.*\): encoding again$"):
        assert np.array_equal(cache.get(*asked, rows), rows())
    if damage != "folder":
        assert file.read_bytes() == whole, "it is mended"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(cache.get(*asked, lambda: None), rows())


def test_what_is_asked_for_is_told_apart(tmp_path):
    cache = Cache(tmp_path)
    for asked in (
        ("m", "", "document", ["ab", "c"]),
        ("m", "", "document", ["a", "bc"]),
        ("m", "", "query", ["a", "bc"]),
        ("m", "a", "document", ["bc"]),
        ("n", "", "document", ["a", "bc"]),
        ("m", "", "document", ["bc", "a"]),
        ("m", "", "document", ["\ud800"]),
    ):
        cache.get(*asked, lambda asked=asked: np.ones((len(asked[3]), 2), np.float32))
    assert len(list(tmp_path.iterdir())) == 7


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file: give a folder"):
        Cache(tmp_path / "file")
    cache = Cache(tmp_path / "cache")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(UserWarning, match="^the embeddings are not kept in the cache: .*no space left"):
        assert np.array_equal(cache.get("m", "", "document", ["a", "b"], rows), rows())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        cache.get("m", "", "document", ["b", "c"], rows)


def fill(folder, seed):
    cache, order = Cache(folder), np.random.default_rng(seed).permutation(40)
    for number in order:
        got = cache.get("m", "", "document", [str(number)], lambda n=number: np.full((1, 500), n, np.float32))
        assert (got == number).all()


def test_two_processes_share_a_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=fill, args=(tmp_path, seed)) for seed in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 40, "nothing is left beside them"


def test_static_models_share_too():
    pytest.importorskip("tokenizers")
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = make_tokenizer()
    base = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=32)], device="cpu")
    reduced = reduce_model(base, SENTENCES, 8)
    encoder = SharedEncoder({"a": base, "b": reduced}, show_progress_bar=False)
    assert len(encoder.groups("query")) == 1
    assert np.abs(encoder.encode(TEXTS, "query")["b"] - reduced.encode_query(TEXTS)).max() < 1e-5


def make_tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    from tests.helpers.tiny import WORDS

    tokenizer = Tokenizer(WordLevel({word: row for row, word in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def test_a_moved_model_is_the_same_one(tiny_path, tmp_path):
    """The folder's name is in no digest."""
    one = make_tiny(tiny_path)
    one.save_pretrained(str(tmp_path / "elsewhere"))
    other = SentenceTransformer(str(tmp_path / "elsewhere"), device="cpu")
    assert len(SharedEncoder({"a": one, "b": other}).groups("document")) == 1
