"""Checking a folder for what Text Embeddings Inference or an older Sentence Transformers misreads."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from st_dimreduce import check, reduce_model, save_portable
from tests.helpers.command import run
from tests.helpers.folders import (
    BERT,
    BOTH_FAIL,
    BOTH_OTHER,
    CONFIG,
    DENSE,
    FAIL,
    FIX,
    LAYOUT,
    MODEL,
    OLD,
    OTHER,
    POOL,
    REDUCE,
    TEI,
    TOKENIZER,
    UNREDUCED,
    VLLM,
    change,
    tiny_of,
)
from tests.helpers.tei import assert_served_as_encoded
from tests.helpers.tiny import SENTENCES


@pytest.mark.parametrize("mode", ["cls", "mean", "lasttoken"])
def test_what_we_save_is_clean(mode, tiny_path, tmp_path):
    torch.manual_seed(0)
    base = tiny_of(tiny_path, mode, Dense(32, 24, activation_function=None), Normalize())
    save_portable(reduce_model(base, SENTENCES, 8), tmp_path / "p")
    assert check(tmp_path / "p")


GELU = "torch.nn.modules.activation.GELU"
BROKEN = {
    "an activation": (
        (DENSE, {"activation_function": GELU}),
        [f"its activation is {GELU}: {TEI} {FAIL}; train the head with Tanh or Identity"],
    ),
    "no activation": (
        (DENSE, {"activation_function": None}),
        [f"activation_function {LAYOUT}: {BOTH_FAIL}; {FIX}"],
    ),
    "new keys of a head": (
        (DENSE, {"module_output_name": "sentence_embedding", "module_input_name": "sentence_embedding"}),
        [f"module_output_name, module_input_name {LAYOUT}: {BOTH_FAIL}; {FIX}"],
    ),
    "a head for tokens": (
        (DENSE, {"module_output_name": "token_embeddings"}),
        [f"it does not reduce the sentence embedding: {TEI} and {VLLM} {OTHER}, {OLD} {FAIL}; {REDUCE}"],
    ),
    "a head on tokens": (
        (DENSE, {"module_input_name": "token_embeddings"}),
        [f"it does not reduce the sentence embedding: {TEI} and {VLLM} {OTHER}, {OLD} {FAIL}; {REDUCE}"],
    ),
    "max pooling": (
        (POOL, {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}),
        [f"its pooling is pooling_mode_max_tokens: {TEI} {FAIL}; choose a base model with cls, mean or lasttoken"],
    ),
    "no pooling": (
        (POOL, {"pooling_mode_mean_tokens": False}),
        [f"its pooling is none: {TEI} {FAIL}; choose a base model with cls, mean or lasttoken"],
    ),
    "pooling as a word": ((POOL, {"pooling_mode": "mean"}), [f"pooling_mode {LAYOUT}: {BOTH_FAIL}; {FIX}"]),
    "no word on cls": (
        (POOL, {"pooling_mode_cls_token": None}),
        [f"pooling_mode_cls_token {LAYOUT}: {BOTH_FAIL}; {FIX}"],
    ),
    "no word on modes that no server knows": ((POOL, {"pooling_mode_lasttoken": None, "include_prompt": None}), []),
    "prompts left out": (
        (POOL, {"include_prompt": False}),
        [f"include_prompt is false: {TEI} {OTHER}; use it without prompts there"],
    ),
    "a classifier": (
        (CONFIG, {"architectures": ["DistilBertForSequenceClassification"]}),
        [
            f"it is the classifier DistilBertForSequenceClassification: {TEI} {FAIL}; "
            "save the base model without its classifier"
        ],
    ),
    "no architecture": (
        (CONFIG, {"architectures": None}),
        [f"it names no architectures: {TEI} {FAIL}; save the base model again"],
    ),
    "rotary positions in new words": (
        (CONFIG, {"rope_parameters": {"rope_theta": 5.0}}),
        [f"rope_theta {LAYOUT}: {BOTH_OTHER}; {FIX}"],
    ),
    "code of its own": (
        (CONFIG, {"auto_map": {"AutoModel": "m.M"}, "model_type": "mine"}),
        [
            f"it needs code of its own: Sentence Transformers 6 and {OLD} and {TEI} and {VLLM} {FAIL}; "
            "choose a base model that does not"
        ],
    ),
    "code that it does not need": ((CONFIG, {"auto_map": {"AutoModel": "m.M"}}), []),
    "the record of the head": ((CONFIG, {"st_dimreduce": {"precision": "int4", "nested": [4, 8]}}), []),
    "a new tokenizer": (
        (TOKENIZER, {"tokenizer_class": "TokenizersBackend"}),
        [f"tokenizer_class {LAYOUT}: {BOTH_OTHER}; {FIX}"],
    ),
    "new special tokens": (
        (TOKENIZER, {"extra_special_tokens": ["[A]"]}),
        [f"extra_special_tokens, additional_special_tokens {LAYOUT}: {BOTH_OTHER}; {FIX}"],
    ),
    "no length": ((BERT, {"max_seq_length": None}), [f"max_seq_length {LAYOUT}: {BOTH_FAIL}; {FIX}"]),
    "lower case": (
        (BERT, {"do_lower_case": True}),
        [f"do_lower_case is true: {TEI} {OTHER}; lowercase in tokenizer.json"],
    ),
    "a new transformer": ((BERT, {"modality_config": {}}), [f"modality_config {LAYOUT}: {BOTH_FAIL}; {FIX}"]),
    "a setting without a place": (
        (BERT, {"module_output_name": "pooled"}),
        [
            f"it sets module_output_name to 'pooled': {TEI} {OTHER}, {OLD} {FAIL}; set it to its default and save the "
            "model again"
        ],
    ),
    "cut vectors": (
        (MODEL, {"truncate_dim": 4}),
        [
            f"truncate_dim is 4: {TEI} and {VLLM} {OTHER}; "
            "truncate the vectors where they are used, or fit a head of this size"
        ],
    ),
    "a prompt that is null": ((MODEL, {"prompts": {"query": None}}), [f"prompts {LAYOUT}: {TEI} {FAIL}; {FIX}"]),
    "a version": ((MODEL, {"__version__": {"transformers": "5.0.0"}}), []),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_thing_is_named_alone(case, copy):
    (file, settings), expected = BROKEN[case]
    change(copy / file, **settings)
    assert [str(problem) for problem in check(copy).problems] == [f"{file}: {line}" for line in expected]
    assert [problem.fixable for problem in check(copy).problems] == [line.endswith(FIX) for line in expected]


@pytest.mark.parametrize(
    ("change_modules", "expected"),
    [
        (
            lambda entries: (
                entries.insert(2, {**entries[3], "idx": 2}) or [e.update(idx=i) for i, e in enumerate(entries)]
            ),
            [
                f"path {LAYOUT}: {TEI} {UNREDUCED}; {FIX}",
                f"a Normalize is before a Dense: {TEI} and {VLLM} {OTHER}; {REDUCE}",
            ],
        ),
        (
            lambda entries: entries.insert(1, entries.pop(2)) or [e.update(idx=i) for i, e in enumerate(entries)],
            [
                f"path {LAYOUT}: {TEI} {UNREDUCED}; {FIX}",
                f"a Dense is before Pooling: {TEI} and {VLLM} {OTHER}; {REDUCE}",
            ],
        ),
        (
            lambda entries: entries[2].update(type="sentence_transformers.models.LayerNorm"),
            [
                f"it names 'sentence_transformers.models.LayerNorm': {TEI} {UNREDUCED}, {VLLM} {OTHER}; "
                "serve it with Sentence Transformers"
            ],
        ),
        (
            lambda entries: entries[0].update(type="sentence_transformers.models.BoW"),
            [
                f"it names 'sentence_transformers.models.BoW': {TEI} and {VLLM} {FAIL}; "
                "serve it with Sentence Transformers",
                f"it has a BoW, whose words it puts in another order each time: {OLD} {OTHER}; "
                "use it with Sentence Transformers from 5 on",
            ],
        ),
        (
            lambda entries: entries[2].update(type="os.system"),
            [
                f"it names 'os.system': {TEI} and {VLLM} {UNREDUCED}, Sentence Transformers 6 and {OLD} {FAIL}; "
                "use modules of Sentence Transformers"
            ],
        ),
        (
            lambda entries: entries[2].update(type="st_dimreduce.dim_reduce.DimReduce"),
            [
                f"type {LAYOUT}: {TEI} {UNREDUCED}, {OLD} {FAIL}; {FIX}",
                f"it names 'st_dimreduce.dim_reduce.DimReduce', which only this package has: {TEI} and {VLLM} "
                f"{UNREDUCED}, Sentence Transformers 6 and {OLD} {FAIL}; {FIX}",
            ],
        ),
        (
            lambda entries: entries[1].update(type="sentence_transformers.base.modules.Pooling"),
            [f"type {LAYOUT}: {TEI} {UNREDUCED}, {OLD} {FAIL}; {FIX}"],
        ),
        (lambda entries: entries[3].update(idx="3"), [f"idx {LAYOUT}: {TEI} {UNREDUCED}; {FIX}"]),
        (lambda entries: entries[1].update(idx=True), [f"idx {LAYOUT}: {TEI} {UNREDUCED}; {FIX}"]),
        (lambda entries: entries[3].update(idx=-1), [f"idx {LAYOUT}: {TEI} {UNREDUCED}; {FIX}"]),
    ],
)
def test_modules_that_readers_misread(change_modules, expected, copy):
    entries = json.loads((copy / "modules.json").read_text())
    change_modules(entries)
    (copy / "modules.json").write_text(json.dumps(entries))
    found = [str(problem) for problem in check(copy).problems if problem.where == "modules.json"]
    assert found == [f"modules.json: {line}" for line in expected]


def test_poolings_that_are_concatenated(tiny_path, tmp_path):
    save_portable(reduce_model(tiny_of(tiny_path, ("cls", "mean")), SENTENCES, 8), tmp_path / "p")
    assert [str(problem) for problem in check(tmp_path / "p").problems] == [
        f"{POOL}: it concatenates the poolings pooling_mode_cls_token, pooling_mode_mean_tokens: "
        f"{TEI} {OTHER}; choose a base model with one"
    ]


def test_files_that_are_missing(copy, tiny_path):
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "tokenizer.json").rename(copy / "vocab.txt")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert [str(problem) for problem in check(copy).problems] == [
        f"tokenizer.json: it is missing: {TEI} {FAIL}; save the model with a fast tokenizer",
        f"model.safetensors: it is missing: {TEI} {FAIL}; save the model again",
    ]
    (copy / "part.safetensors").write_bytes(weights)
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {"x": "part.safetensors"}}')
    assert [problem.where for problem in check(copy).problems] == ["tokenizer.json"]
    everyone = f"Sentence Transformers 6 and {OLD} and {TEI} and {VLLM}"
    missing = f"modules.json: it is missing: {everyone} {UNREDUCED}; save the model with save_portable"
    assert str(check(tiny_path).problems[0]) == missing
    with pytest.raises(ValueError, match=r"has no modules\.json: save the model with save_portable"):
        check(tiny_path, fix=True)


def test_the_command(saved, tmp_path):
    folder = str(shutil.copytree(saved / "stock", tmp_path / "model"))
    first = run("check", folder)
    assert first.exit_code == 1
    found = check(folder)
    assert first.output.splitlines()[-len(found.problems) :] == [str(problem) for problem in found.problems]
    for reading in found.readers:
        assert re.search(rf"^ {re.escape(reading.reader)} +{reading.outcome.value} ", first.output, re.MULTILINE)
    assert run("check", folder, "--fix").exit_code == 0
    assert run("check", folder).output.endswith(f"{folder}: nothing is wrong.\n")
    for path in (tmp_path, tmp_path / "none"):
        bad = run("check", path, "--fix")
        assert (bad.exit_code, len(bad.stderr.splitlines())) == (2, 1), bad.output


LIGHT = """
import sys
from st_dimreduce import check
assert check(sys.argv[1])
assert not check(sys.argv[2])
print([name for name in ("torch", "transformers", "sentence_transformers") if name in sys.modules])
"""


def test_checks_without_importing_torch(copy, saved, tmp_path):
    stock = shutil.copytree(saved / "stock", tmp_path / "stock")
    command = [sys.executable, "-c", LIGHT, str(copy), str(stock)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "[]\n"


@pytest.mark.parametrize("name", ["cls", "two"])
def test_served_in_numpy_in_the_servers_order_it_gives_what_encode_gives(name, tiny_path, tmp_path):
    torch.manual_seed(0)
    dense = Dense(32, 24, activation_function=None)
    bases = {
        "cls": lambda: tiny_of(tiny_path, "cls", Normalize()),
        "two": lambda: tiny_of(tiny_path, "mean", dense),
    }
    assert_served_as_encoded(reduce_model(bases[name](), SENTENCES, 16), SENTENCES, tmp_path)
