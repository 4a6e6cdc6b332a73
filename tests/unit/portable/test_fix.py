"""Rewriting folders that an older reader misreads, with the same vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, StaticEmbedding, Transformer
from transformers import AutoTokenizer

from st_dimreduce import DimReduce, check
from st_dimreduce.models.folder import read_layout
from st_dimreduce.portable.layout import POOLING_KEYS, rewrite
from st_dimreduce.portable.transformers4 import add_old_settings
from tests.helpers.folders import (
    BERT,
    CONFIG,
    DENSE,
    FAIL,
    FIX,
    LAYOUT,
    MODEL,
    OLD,
    OTHER,
    POOL,
    TEI,
    TOKENIZER,
    UNREDUCED,
    change,
    encode,
    module,
    tiny_of,
)
from tests.helpers.tiny import SENTENCES


@pytest.mark.parametrize("form", ["stock", "plug-in"])
def test_a_stock_folder_is_reported_and_fix_makes_it_clean_with_the_same_vectors(form, saved, tmp_path):
    folder = Path(shutil.copytree(saved / form, tmp_path / "model"))
    (folder / "LICENSE").write_text("ours")
    readme = (folder / "README.md").read_text()
    found = {problem.where: problem.outcomes for problem in check(folder).problems}
    assert found["modules.json"].keys() >= {"old", "tei"}
    assert found["1_Pooling/config.json"] == {"old": "fails", "tei": "fails"}
    weights = {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}
    check(folder, fix=True)
    assert check(folder)
    assert np.array_equal(encode(folder), encode(saved / "portable"))
    model = SentenceTransformer(str(folder), device="cpu")
    assert model.max_seq_length == SentenceTransformer(str(saved / "portable"), device="cpu").max_seq_length == 24
    assert {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")} == weights
    assert ((folder / "LICENSE").read_text(), (folder / "README.md").read_text()) == ("ours", readme)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_fix_moves_what_lies_elsewhere_and_turns_pickles_into_safetensors(copy):
    vectors = encode(copy)
    torch.save({name: torch.from_numpy(w) for name, w in load_file(copy / "2_Dense" / "model.safetensors").items()},
               copy / "2_Dense" / "pytorch_model.bin")  # fmt: skip
    (copy / "2_Dense" / "model.safetensors").unlink()
    (copy / "2_Dense").rename(copy / "head")
    (copy / "1_Pooling").rename(copy / "pool")
    (copy / "0_Transformer").mkdir()
    for path in [*copy.glob("*token*"), copy / "config.json", copy / "model.safetensors", *copy.glob("*bert*")]:
        path.rename(copy / "0_Transformer" / path.name)
    for number, path in enumerate(["0_Transformer", "pool", "head"]):
        module(copy, number, path=path, idx=None)
    assert [str(problem) for problem in check(copy).problems] == [
        f"modules.json: idx, path {LAYOUT}: {TEI} {UNREDUCED}; {FIX}",
        f"head/pytorch_model.bin: its weights are a pickle, which some readers refuse; {FIX}",
    ]
    check(copy, fix=True)
    assert check(copy)
    assert np.array_equal(encode(copy), vectors)
    assert not list(copy.rglob("*.bin"))


@pytest.mark.parametrize("modes", [("mean", "cls"), ("cls", "mean")])
def test_fix_never_reorders_what_is_concatenated(modes, tiny_path, tmp_path):
    pooling = Pooling(32, modes)
    model = SentenceTransformer(modules=[Transformer(tiny_path), pooling, Dense(64, 8)], device="cpu")
    model.save_pretrained(str(tmp_path / "stock"))
    check(tmp_path / "stock", fix=True)
    assert np.array_equal(encode(tmp_path / "stock"), model.encode(SENTENCES))


def test_a_static_embedding_cannot_be_served_and_is_fixed_for_older_readers(tiny_path, tmp_path):
    static = StaticEmbedding(AutoTokenizer.from_pretrained(tiny_path), embedding_dim=16)
    model = SentenceTransformer(modules=[static, DimReduce(16, 4).to_dense()], device="cpu")
    model.save_pretrained(str(tmp_path / "p"))
    vectors = encode(tmp_path / "p")
    check(tmp_path / "p", fix=True)
    serve_it = "serve it with Sentence Transformers"
    named = "it names 'sentence_transformers.models.StaticEmbedding'"
    said = f"modules.json: {named}: {TEI} and vLLM {FAIL}; {serve_it}"
    assert [str(problem) for problem in check(tmp_path / "p").problems] == [said]
    assert np.array_equal(encode(tmp_path / "p"), vectors)
    folders = sorted(path.name for path in (tmp_path / "p").iterdir() if path.is_dir())
    assert folders == ["0_StaticEmbedding", "1_Dense"], "before 5, only a Transformer may be in the model's folder"


def test_a_static_embedding_that_another_library_reads_stays_where_it_is(tiny_path, tmp_path):
    static = StaticEmbedding(AutoTokenizer.from_pretrained(tiny_path), embedding_dim=16)
    model = SentenceTransformer(modules=[static, DimReduce(16, 4).to_dense()], device="cpu")
    model.save_pretrained(str(tmp_path / "p"))
    (tmp_path / "p" / "config.json").write_text("{}")  # as Model2Vec writes it
    check(tmp_path / "p", fix=True)
    assert (tmp_path / "p" / "tokenizer.json").exists()
    assert np.array_equal(encode(tmp_path / "p"), model.encode(SENTENCES))


TANH = "torch.nn.modules.activation.Tanh"
POOLED = {"word_embedding_dimension": 32, **dict.fromkeys(POOLING_KEYS.values(), False), "include_prompt": True}


def rewritten(copy, file):
    """Rewrite a folder and return what one of its files says then; None if it is not there."""
    rewrite(copy, read_layout(copy, trust_remote_code=True))
    return json.loads((copy / file).read_text()) if (copy / file).exists() else None


@pytest.mark.parametrize(
    ("said", "tokenizer_length", "positions", "expected"),
    [
        ({"max_seq_length": 11, "do_lower_case": True}, 7, 24, {"max_seq_length": 11, "do_lower_case": True}),
        ({"do_lower_case": False}, 7, 24, {"max_seq_length": 7, "do_lower_case": False}),
        (None, 40, 24, {"max_seq_length": 24, "do_lower_case": False}),
        (None, 1, 24, {"max_seq_length": 1, "do_lower_case": False}),
        (None, 10**30, 24, {"max_seq_length": 24, "do_lower_case": False}),
        (None, 10**9, None, {"max_seq_length": None, "do_lower_case": False}),
        (None, 100, None, {"max_seq_length": 100, "do_lower_case": False}),
        (None, 0, None, {"max_seq_length": None, "do_lower_case": False}),
        (None, 7.0, None, {"max_seq_length": None, "do_lower_case": False}),
        ({"max_seq_length": 5, "modality_config": {"text": {}, "message": {}}}, 7, 24,
         {"max_seq_length": 5, "do_lower_case": False}),
        ({"modality_config": {"image": {}}}, 7, 24, {"modality_config": {"image": {}}}),
    ],
)  # fmt: skip
def test_the_maximum_length_is_written_where_older_readers_look_for_it(
    copy, said, tokenizer_length, positions, expected
):
    (copy / BERT).unlink()
    if said is not None:
        (copy / BERT).write_text(json.dumps(said))
    change(copy / TOKENIZER, model_max_length=tokenizer_length)
    change(copy / CONFIG, max_position_embeddings=positions)
    assert rewritten(copy, BERT) == expected


def test_the_maximum_length_without_the_tokenizers_settings(copy):
    (copy / BERT).unlink()
    (copy / TOKENIZER).unlink()
    assert rewritten(copy, BERT) == {"max_seq_length": 24, "do_lower_case": False}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"pooling_mode": "mean"}, POOLED | {"pooling_mode_mean_tokens": True}),
        ({"pooling_mode": "cls", "include_prompt": False},
         POOLED | {"pooling_mode_cls_token": True, "include_prompt": False}),
        ({"pooling_mode": ["lasttoken"]}, POOLED | {"pooling_mode_lasttoken": True}),
        ({"pooling_mode_max_tokens": True}, POOLED | {"pooling_mode_max_tokens": True}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("width", ["word_embedding_dimension", "embedding_dimension"])
def test_a_pooling_is_written_with_the_old_keys(copy, said, expected, width):
    (copy / POOL).write_text(json.dumps({width: 32, **said}))
    assert rewritten(copy, POOL) == expected


def test_a_pooling_without_an_old_key_stays_as_it_is(copy):
    said = {"embedding_dimension": 32, "pooling_mode": "attention"}
    (copy / POOL).write_text(json.dumps(said))
    assert rewritten(copy, POOL) == said


@pytest.fixture
def biased(tiny_path, tmp_path):
    """The folder of a model whose head has a bias and an Identity, as stock Sentence Transformers saves it."""
    torch.manual_seed(0)
    head = Dense(32, 8, activation_function=torch.nn.Identity())
    tiny_of(tiny_path, "mean", head).save_pretrained(str(tmp_path / "biased"))
    return tmp_path / "biased"


IDENTITY = {
    "in_features": 32,
    "out_features": 8,
    "bias": True,
    "activation_function": "torch.nn.modules.linear.Identity",
}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, IDENTITY),
        ({"bias": None, "activation_function": None}, IDENTITY | {"activation_function": TANH}),
        ({"module_input_name": None, "module_output_name": None}, IDENTITY),
        ({"module_input_name": "token_embeddings"}, "stays"),
        ({"module_output_name": "token_embeddings"}, "stays"),
    ],
)
def test_a_head_is_written_with_the_old_keys_where_they_suffice(biased, settings, expected):
    change(biased / DENSE, **settings)
    before = json.loads((biased / DENSE).read_text())
    assert rewritten(biased, DENSE) == (before if expected == "stays" else expected)


@pytest.mark.parametrize("size", [8, 32])
def test_a_residual_is_named_and_stays(tiny_path, tmp_path, size):
    torch.manual_seed(0)
    model = tiny_of(tiny_path, "mean", Dense(32, size, use_residual=True))
    model.save_pretrained(str(tmp_path / "p"))
    check(tmp_path / "p", fix=True)
    assert np.array_equal(encode(tmp_path / "p"), model.encode(SENTENCES))
    said = f"{DENSE}: it has a residual connection: {OLD} and {TEI} and vLLM {OTHER}; train the head without"
    assert said in map(str, check(tmp_path / "p").problems)


def test_prompts_of_none_become_empty_ones(copy):
    versions = {"sentence_transformers": "9.9.9"}
    prompts = {"query": None, "document": "text: "}
    change(copy / MODEL, prompts=prompts, similarity_fn_name="dot", model_type="Other", __version__=versions)
    found = rewritten(copy, MODEL)
    assert "__version__" not in found
    assert (found["prompts"], found["similarity_fn_name"]) == ({"query": "", "document": "text: "}, "dot")
    assert found["model_type"] == "Other"
    (copy / MODEL).unlink()
    assert rewritten(copy, MODEL) is None
    (copy / MODEL).write_text("{}")
    assert rewritten(copy, MODEL) == {}


def test_modules_get_their_old_names_and_keep_their_own(copy):
    entries = json.loads((copy / "modules.json").read_text())
    new = [
        "base.modules.Transformer",
        "base.modules.Pooling",
        "base.modules.Dense",
        "sentence_transformer.modules.LayerNorm",
    ]
    for entry, name in zip(entries, new, strict=True):
        entry |= {"type": f"sentence_transformers.{name}", "idx": 7}
    entries.append({"idx": 7, "name": "theirs", "path": "", "type": "somebody.elses.Module"})
    (copy / "modules.json").write_text(json.dumps(entries))
    assert [tuple(entry.values()) for entry in rewritten(copy, "modules.json")] == [
        (0, "0", "", "sentence_transformers.models.Transformer"),
        (1, "1", "1_Pooling", "sentence_transformers.models.Pooling"),
        (2, "2", "2_Dense", "sentence_transformers.models.Dense"),
        (3, "3", "3_Normalize", "sentence_transformers.models.LayerNorm"),
        (4, "theirs", "", "somebody.elses.Module"),
    ]


ROPE = {"rope_theta": 1e4, "rope_type": "default"}
FAR = {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}
MODERN = {"full_attention": {"rope_theta": 16e4, "rope_type": "default"}, "sliding_attention": ROPE}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, {}),
        ({"rope_parameters": None}, {}),
        ({"rope_parameters": ROPE}, {"rope_theta": 1e4}),
        ({"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}, {"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        ({"rope_parameters": FAR}, {"rope_theta": 1e6, "rope_scaling": FAR}),
        ({"rope_parameters": {"factor": 2.0}}, {}),
        ({"model_type": "modernbert", "rope_parameters": MODERN}, {"global_rope_theta": 16e4, "local_rope_theta": 1e4}),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"full_attention": FAR, "sliding_attention": ROPE}},
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": FAR},
        ),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"full_attention": {}, "sliding_attention": ROPE}},
            {"rope_local_base_freq": 1e4},
        ),
        ({"rope_parameters": {"full_attention": FAR, "rope_theta": 3.0}}, {"rope_theta": 3.0}),
    ],
)
def test_rotary_positions_as_transformers_4_reads_them(config, words, tmp_path):
    (tmp_path / CONFIG).write_text(json.dumps(config))
    add_old_settings(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text()) == config | words
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"tokenizer_class": "BertTokenizer"}, {}),
        (
            {"tokenizer_class": "TokenizersBackend"},
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]},
        ),
        (
            {"tokenizer_class": "TokenizersBackend", "model_input_names": ["input_ids"]},
            {"tokenizer_class": "PreTrainedTokenizerFast"},
        ),
        (
            {"extra_special_tokens": ["[A]"]},
            {"extra_special_tokens": {}, "additional_special_tokens": ["[A]"]},
        ),
        ({"extra_special_tokens": {"a": "[A]"}}, {}),
    ],
)
def test_a_tokenizer_as_transformers_4_reads_it(said, words, tmp_path):
    (tmp_path / TOKENIZER).write_text(json.dumps(said))
    add_old_settings(tmp_path)
    assert json.loads((tmp_path / TOKENIZER).read_text()) == said | words
