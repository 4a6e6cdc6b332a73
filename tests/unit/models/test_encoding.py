"""Encoding once for models that share modules, and the cache of embeddings."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import warnings
import weakref

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

from st_dimreduce import DimReduce, Head, Size, compare, reduce_model
from st_dimreduce.apps.search_page import Corpus
from st_dimreduce.models.cache import Cache
from st_dimreduce.models.encoding import SharedEncoder, body_digest
from st_dimreduce.portable.save import save_portable
from tests.helpers.tiny import SENTENCES, make_tiny

TEXTS = [*SENTENCES, " ".join(SENTENCES[:6])]


@pytest.fixture
def encoded(monkeypatch):
    """The number of texts in each call of a transformer."""
    counts, forward = [], Transformer.forward

    def counting(self, features, **kwargs):
        counts.append(len(features["input_ids"]))
        return forward(self, features, **kwargs)

    monkeypatch.setattr(Transformer, "forward", counting)
    return counts


@pytest.mark.parametrize("kind", ["portable", "trainable", "nested", "behind a Dense", "truncated", "prompts"])
def test_embeddings_are_those_of_encoding(tiny, tmp_path, encoded, kind):
    if kind == "prompts":
        tiny.prompts = {"query": "query : ", "document": "document : "}
    base = tiny
    if kind == "behind a Dense":
        base = SentenceTransformer(modules=[*list(tiny)[:2], Dense(32, 24, activation_function=torch.nn.Identity())])
    reduced = reduce_model(base, SENTENCES, Size(nested=[8, 16]) if kind == "nested" else 16)
    if kind == "trainable":
        reduced = Head.from_model(reduced).attach(base, trainable=True)
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
    encoder = SharedEncoder({"base": base, "reduced": reduced})
    for role, (full, small) in expected.items():
        rows = encoder.encode(TEXTS, role)
        assert np.abs(rows["base"] - full).max() < 1e-5
        assert np.abs(rows["reduced"] - small).max() < 1e-5
        assert rows["reduced"].shape == small.shape
    assert sum(encoded) == 3 * len(TEXTS), "each text once per role"
    assert encoder.summary() == "Encoded once, by base: reduced has the same modules below its head."
    assert encoder.seconds["reduced"] > 0


def change_weights(model):
    with torch.no_grad():
        next(model[0].parameters())[5, 0] += 1e-3


CHANGES = {
    "copy": lambda model: None,
    "weights": change_weights,
    "pooling": lambda model: setattr(model[1], "pooling_mode", "cls"),
    "pooled prompt": lambda model: setattr(model[1], "include_prompt", False),
    "length": lambda model: setattr(model, "max_seq_length", 4),
    "dtype": lambda model: model.half(),
    "prompts": lambda model: setattr(model, "prompts", {"document": "document : "}),
    "tokenizer": lambda model: model.tokenizer.add_tokens(["cat dog"]),
    "truncation side": lambda model: setattr(model.tokenizer, "truncation_side", "left"),
    "inputs": lambda model: setattr(model.tokenizer, "model_input_names", ["input_ids"]),
    "lower case": lambda model: setattr(model[0], "do_lower_case", True),
}
SETTINGS = [how for how in CHANGES if how not in ("copy", "prompts")]


def changed(model, how):
    """A copy of a model with one change."""
    other = copy.deepcopy(model)
    CHANGES[how](other)
    return other


@pytest.mark.parametrize("how", [*SETTINGS, "prompts"])
def test_a_model_that_differs_encodes_by_itself(tiny, how):
    reduced = reduce_model(tiny, SENTENCES, 16)
    assert len(SharedEncoder({"a": tiny, "b": reduced}).groups("document")) == 1
    encoder = SharedEncoder({"a": tiny, "b": changed(reduced, how)})
    assert encoder.groups("document") == [["a"], ["b"]]
    assert encoder.summary() == "Encoded by a; b by itself, as it has other modules below the head, or another prompt."


@pytest.mark.parametrize("how", SETTINGS)
def test_a_digest_depends_on_every_setting_that_changes_a_vector(tiny, how):
    assert body_digest(tiny) == body_digest(copy.deepcopy(tiny)) is not None
    assert body_digest(tiny) != body_digest(changed(tiny, how))


def test_texts_are_truncated_on_the_side_that_each_model_asks_for(tiny, tmp_path):
    long = [" ".join(SENTENCES[row : row + 30]) for row in range(9)]
    tiny.max_seq_length = 8
    left = changed(tiny, "truncation side")
    expected = {"right": tiny.encode_document(long), "left": left.encode_document(long)}
    assert np.abs(expected["left"] - expected["right"]).max() > 0.1
    cache = Cache(tmp_path)
    for models in ({"right": tiny}, {"left": left}, {"right": tiny, "left": left}):
        for given in (None, cache):
            for name, rows in SharedEncoder(models, 32, given).encode(long, "document").items():
                assert np.abs(rows - expected[name]).max() < 1e-5


class Loud(Pooling):
    """A module of another package."""


class LoudModel(SentenceTransformer):
    """A model of another package, which may encode in its own way."""


def test_what_cannot_be_identified_has_no_digest(tiny):
    assert body_digest(SentenceTransformer(modules=[tiny[0], Loud(32, "mean")])) is None
    assert body_digest(LoudModel(modules=list(tiny))) is None
    adapted = copy.deepcopy(tiny)
    adapted[0].auto_model.peft_config = {}
    assert body_digest(adapted) is None
    graph = copy.deepcopy(tiny)
    graph[0].backend = "onnx"
    assert body_digest(graph) is None


def test_what_cannot_be_compared_encodes_by_itself(tiny, tmp_path):
    one, other = (SentenceTransformer(modules=[tiny[0], Loud(32, "mean"), DimReduce(32, size)]) for size in (16, 8))
    encoder = SharedEncoder({"a": one, "b": other})
    assert encoder.groups("document") == [["a"], ["b"]]
    assert "modules that cannot be compared" in encoder.summary()
    with pytest.warns(
        UserWarning, match="^nothing that a, b encodes is cached: it has modules whose settings cannot be read$"
    ):
        assert SharedEncoder({"a": one, "b": other}, 32, Cache(tmp_path)).encode(TEXTS, "query")["b"].any()
    assert not list(tmp_path.iterdir())
    tokens = SentenceTransformer(modules=[tiny[0], DimReduce(32, 8, module_input_name="token_embeddings"), Pooling(8)])
    rows = SharedEncoder({"a": tiny, "b": tokens}).encode(TEXTS, "document")
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


def test_compare_refuses_models_in_the_wrong_order(tiny):
    reduced = reduce_model(tiny, SENTENCES, 16)
    wrong = r"^the first model has a fitted head and 'reduced model' has none: give the base model first"
    for first in (reduced, reduce_model(tiny, SENTENCES, 32)):
        with pytest.raises(ValueError, match=wrong):
            compare(first, tiny, SENTENCES)
    same = "^'reduced model' is the base model itself: its rows show the precisions alone$"
    with pytest.warns(UserWarning, match=same):
        compare(tiny, changed(tiny, "copy"), SENTENCES)
    smaller = SentenceTransformer(modules=[*list(tiny)[:2], Dense(32, 16)])
    with pytest.warns(UserWarning, match="^'reduced model' gives 32 dimensions, more than the base model's 16"):
        compare(smaller, tiny, SENTENCES)


def test_the_cache_encodes_nothing_twice(tiny, tmp_path, encoded):
    folder = tmp_path / "deep" / "cache"
    first = reduce_model(tiny, TEXTS, 16, cache=folder)
    files = sorted(folder.iterdir())
    assert [file.suffix for file in files] == [".npz"] * len(files)
    assert np.load(files[0], allow_pickle=False)["rows"].dtype == np.float32
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
    Corpus(tmp_path / "small", TEXTS, cache=tmp_path / "cache")
    encoded.clear()
    options = {"base": tmp_path / "base", "cache": tmp_path / "cache"}
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
    alone = Corpus(tmp_path / "eight", TEXTS)
    once = sum(encoded)
    encoded.clear()
    shared = Corpus([tmp_path / "eight", tmp_path / "four"], TEXTS)
    assert sum(encoded) == once == len(TEXTS) + 1, "the texts, and one query to warm up"
    encoded.clear()
    found = shared.search("a cat", 5, "float32", "eight")
    assert sum(encoded) == 1, "the full model and the reduced one"
    assert [answer["document"] for answer in found["reduced"]["answers"]] == [
        answer["document"] for answer in alone.search("a cat", 5, "float32")["reduced"]["answers"]
    ]
    encoded.clear()
    trained = Corpus([tmp_path / "eight", tmp_path / "trained"], TEXTS)
    assert sum(encoded) == 2 * len(TEXTS) + 1
    encoded.clear()
    trained.search("a cat", model="trained")
    assert sum(encoded) == 2, "each by its own body"


def test_shared_modules_are_in_memory_once(tiny):
    again, other = copy.deepcopy(tiny), changed(tiny, "weights")
    encoder = SharedEncoder({"": tiny, "again": again, "other": other})
    expected = {"": tiny.encode_query(TEXTS[:5]), "other": other.encode_query(TEXTS[:5])}
    transformer = weakref.ref(again[0])
    del again
    gc.collect()
    assert transformer() is None
    rows = encoder.encode(TEXTS[:5], "query")
    for name, same in (("", ""), ("again", ""), ("other", "other")):
        assert np.abs(rows[name] - expected[same]).max() < 1e-6


def test_some_of_the_models_encode(tiny, encoded):
    encoder = SharedEncoder({"": tiny, "same": copy.deepcopy(tiny), "other": changed(tiny, "weights")})
    rows = encoder.encode(TEXTS[:5], "query", names=["same"])
    assert list(rows) == ["same"]
    assert sum(encoded) == 5
    assert encoder.seconds["same"] > 0
    assert encoder.seconds[""] == encoder.seconds["other"] == 0


def rows():
    return np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other", "pickle", "folder"])
def test_texts_of_a_damaged_or_foreign_file_are_encoded_again(tmp_path, damage):
    cache, asked = Cache(tmp_path), (("model", "", "document"), ["a", "b"])
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
        Cache(tmp_path / "three").get(("model", "", "document"), ["a"] * 3, lambda: np.ones((3, 3), np.float32))
        file.write_bytes(next((tmp_path / "three").iterdir()).read_bytes())
    elif damage == "pickle":
        with file.open("wb") as written:
            np.savez(written, rows=np.array([{}], object), allow_pickle=True)
    else:
        file.unlink()
        file.mkdir()
    with pytest.warns(UserWarning, match=r"\.npz is damaged, or not a file of the cache \(.*\): encoding again$"):
        assert np.array_equal(cache.get(*asked, rows), rows())
    if damage != "folder":
        assert file.read_bytes() == whole, "it is mended"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(cache.get(*asked, lambda: None), rows())


def test_keys_and_texts_are_told_apart(tmp_path):
    cache = Cache(tmp_path)
    for asked in (
        (("m", "", "document"), ["ab", "c"]),
        (("m", "", "document"), ["a", "bc"]),
        (("m", "", "query"), ["a", "bc"]),
        (("m", "a", "document"), ["bc"]),
        (("n", "", "document"), ["a", "bc"]),
        (("m", "", "document"), ["bc", "a"]),
        (("m", "", "document"), ["\ud800"]),
    ):
        cache.get(*asked, lambda asked=asked: np.ones((len(asked[1]), 2), np.float32))
    assert len(list(tmp_path.iterdir())) == 7


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file: give a folder"):
        Cache(tmp_path / "file")
    cache = Cache(tmp_path / "cache")

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="^the embeddings cannot be written to the cache: .*no space left"):
        assert np.array_equal(cache.get(("m", "", "document"), ["a", "b"], rows), rows())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        cache.get(("m", "", "document"), ["b", "c"], rows)


def fill(folder, seed):
    cache, order = Cache(folder), np.random.default_rng(seed).permutation(40)
    for number in order:
        got = cache.get(("m", "", "document"), [str(number)], lambda n=number: np.full((1, 500), n, np.float32))
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
    encoder = SharedEncoder({"a": base, "b": reduced})
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
