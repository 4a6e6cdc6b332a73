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

from st_dimreduce import check, check_readers, fix, reduce_model, save_portable
from tests.helpers.command import run
from tests.helpers.folders import (
    BERT,
    CONFIG,
    DENSE,
    FIX,
    MODEL,
    NOT_OLD,
    OLDER,
    POOL,
    REDUCE,
    SERVED,
    STOPS,
    TEI,
    TOKENIZER,
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
    assert check(tmp_path / "p") == []


GELU = "torch.nn.modules.activation.GELU"
BROKEN = {
    "an activation": (
        (DENSE, {"activation_function": GELU}),
        [f"its activation is {GELU}: {STOPS}; train the head with Tanh or Identity"],
    ),
    "no activation": (
        (DENSE, {"activation_function": None}),
        [f"it names no activation: {TEI} takes Identity, all others Tanh; {FIX}"],
    ),
    "no bias": ((DENSE, {"bias": 0}), [f"it does not set bias to true or false: {STOPS}; {FIX}"]),
    "new keys of a head": (
        (DENSE, {"module_output_name": "sentence_embedding", "module_input_name": "sentence_embedding"}),
        [f"it has the new keys module_input_name, module_output_name: {OLDER}; {FIX}"],
    ),
    "a head for tokens": (
        (DENSE, {"module_output_name": "token_embeddings"}),
        [
            f"it has the new keys module_output_name: {OLDER}; {FIX}",
            f"it does not reduce the sentence embedding: {TEI} applies it to that; {REDUCE}",
        ],
    ),
    "a head on tokens": (
        (DENSE, {"module_input_name": "token_embeddings"}),
        [
            f"it has the new keys module_input_name: {OLDER}; {FIX}",
            f"it does not reduce the sentence embedding: {TEI} applies it to that; {REDUCE}",
        ],
    ),
    "max pooling": (
        (POOL, {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}),
        [f"its pooling is pooling_mode_max_tokens: {SERVED}"],
    ),
    "no pooling": ((POOL, {"pooling_mode_mean_tokens": False}), [f"its pooling is none: {SERVED}"]),
    "pooling as a word": ((POOL, {"pooling_mode": "mean"}), [f"it has the new keys pooling_mode: {OLDER}; {FIX}"]),
    "no word on cls and mean": (
        (POOL, {"pooling_mode_cls_token": None, "pooling_mode_mean_tokens": 1}),
        [
            f"it does not set pooling_mode_cls_token, pooling_mode_mean_tokens to true or false: {STOPS}; {FIX}",
            f"its pooling is none: {SERVED}",
        ],
    ),
    "prompts left out": (
        (POOL, {"include_prompt": False}),
        [f"include_prompt is false: {TEI} pools the prompt too; use it without prompts there"],
    ),
    "a classifier": (
        (CONFIG, {"architectures": ["DistilBertForSequenceClassification"]}),
        [
            f"it names ['DistilBertForSequenceClassification']: {TEI} takes it for a classifier; "
            "save the base model without its classifier"
        ],
    ),
    "no architecture": (
        (CONFIG, {"architectures": None}),
        [f"it names no architectures: {STOPS}; save the base model again"],
    ),
    "rotary positions in new words": (
        (CONFIG, {"rope_parameters": {"rope_theta": 5.0}}),
        [f"rope_theta {NOT_OLD}; {FIX}"],
    ),
    "code of its own": (
        (CONFIG, {"auto_map": {"AutoModel": "m.M"}, "model_type": "mine"}),
        ["it needs code of its own: every reader needs trust_remote_code; choose a base model that does not"],
    ),
    "code that it does not need": ((CONFIG, {"auto_map": {"AutoModel": "m.M"}}), []),
    "the record of the head": ((CONFIG, {"st_dimreduce": {"precision": "int4", "nested": [4, 8]}}), []),
    "a new tokenizer": ((TOKENIZER, {"tokenizer_class": "TokenizersBackend"}), [f"tokenizer_class {NOT_OLD}; {FIX}"]),
    "new special tokens": (
        (TOKENIZER, {"extra_special_tokens": ["[A]"]}),
        [f"additional_special_tokens {NOT_OLD}; {FIX}", f"extra_special_tokens {NOT_OLD}; {FIX}"],
    ),
    "no length": (
        (BERT, {"max_seq_length": None}),
        [f"it has no max_seq_length: {STOPS} in some versions; {FIX}"],
    ),
    "lower case": (
        (BERT, {"do_lower_case": True}),
        [f"do_lower_case is true: {TEI} does not lowercase; lowercase in tokenizer.json"],
    ),
    "a new transformer": ((BERT, {"modality_config": {}}), [f"it has the new keys modality_config: {OLDER}; {FIX}"]),
    "cut vectors": (
        (MODEL, {"truncate_dim": 4}),
        [
            f"truncate_dim is 4: {TEI} serves all dimensions; "
            "truncate the vectors where they are used, or fit a head of this size"
        ],
    ),
    "a prompt that is a number": ((MODEL, {"prompts": {"query": 5}}), [f"a prompt is no string: {STOPS}; {FIX}"]),
    "prompts in a list": ((MODEL, {"prompts": ["query: "]}), [f"a prompt is no string: {STOPS}; {FIX}"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_thing_is_named_alone(case, copy):
    (file, settings), expected = BROKEN[case]
    change(copy / file, **settings)
    assert [str(problem) for problem in check(copy)] == [f"{file}: {line}" for line in expected]
    assert [problem.fixable for problem in check(copy)] == [line.endswith(FIX) for line in expected]


@pytest.mark.parametrize(
    ("change_modules", "expected"),
    [
        (
            lambda entries: entries.insert(2, {**entries[3], "name": "4"}),
            f"a Normalize is before a Dense: {TEI} leaves it out and serves different vectors; {REDUCE}",
        ),
        (
            lambda entries: entries.insert(1, entries.pop(2)),
            f"a Dense is before Pooling: {TEI} applies it behind Pooling, to other vectors; {REDUCE}",
        ),
        (
            lambda entries: entries[2].update(type="sentence_transformers.models.LayerNorm"),
            f"it names 'sentence_transformers.models.LayerNorm': {TEI} serves unreduced embeddings; "
            "use only Transformer, Pooling, Dense and Normalize",
        ),
        (
            lambda entries: entries[2].update(type="os.system"),
            f"it names 'os.system': {TEI} serves unreduced embeddings, every other reader needs trust_remote_code; "
            "use only Transformer, Pooling, Dense and Normalize",
        ),
        (
            lambda entries: entries[2].update(type="st_dimreduce.dim_reduce.DimReduce"),
            "it names 'st_dimreduce.dim_reduce.DimReduce': every reader needs trust_remote_code and the package, "
            f"{TEI} serves unreduced embeddings; {FIX}",
        ),
        (
            lambda entries: entries[1].update(type="sentence_transformers.base.modules.Pooling"),
            "Pooling has its new name 'sentence_transformers.base.modules.Pooling': "
            f"{OLDER}, {TEI} may serve unreduced embeddings; {FIX}",
        ),
        (lambda entries: entries[3].update(idx="3"), f"module 3 has no idx: {TEI} serves unreduced embeddings; {FIX}"),
        (lambda entries: entries[3].update(idx=True), f"module 3 has no idx: {TEI} serves unreduced embeddings; {FIX}"),
        (lambda entries: entries[3].update(idx=-1), f"module 3 has no idx: {TEI} serves unreduced embeddings; {FIX}"),
    ],
)
def test_modules_that_the_server_misreads(change_modules, expected, copy):
    entries = json.loads((copy / "modules.json").read_text())
    change_modules(entries)
    (copy / "modules.json").write_text(json.dumps(entries))
    assert [str(problem) for problem in check(copy)] == [f"modules.json: {expected}"]


def test_poolings_that_are_concatenated(tiny_path, tmp_path):
    save_portable(reduce_model(tiny_of(tiny_path, ("cls", "mean")), SENTENCES, 8), tmp_path / "p")
    assert [str(problem) for problem in check(tmp_path / "p")] == [
        f"{POOL}: it concatenates the poolings pooling_mode_cls_token, pooling_mode_mean_tokens: "
        f"{TEI} takes only one of them; choose a base model with one"
    ]


def test_files_that_are_missing(copy, tiny_path):
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "tokenizer.json").rename(copy / "vocab.txt")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert [str(problem) for problem in check(copy)] == [
        f"tokenizer.json: it is missing: {STOPS}; save the model with a fast tokenizer",
        ".: there is no model.safetensors: readers that refuse pickles do not load it; save the model again",
    ]
    (copy / "part.safetensors").write_bytes(weights)
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {"x": "part.safetensors"}}')
    assert [problem.where for problem in check(copy)] == ["tokenizer.json"]
    missing = f"modules.json: it is missing: {TEI} finds no pooling; save the model with save_portable"
    assert str(check(tiny_path)[0]) == missing
    with pytest.raises(ValueError, match=r"has no modules\.json: save the model with save_portable"):
        fix(tiny_path)


def test_the_command(saved, tmp_path):
    folder = str(shutil.copytree(saved / "stock", tmp_path / "model"))
    first = run("check", folder)
    assert first.exit_code == 1
    assert first.output.splitlines()[-len(check(folder)) :] == [str(problem) for problem in check(folder)]
    for reading in check_readers(folder):
        assert re.search(rf"^ {re.escape(reading.reader)} +{reading.outcome.value} ", first.output, re.MULTILINE)
    assert run("check", folder, "--fix").exit_code == 0
    assert run("check", folder).output.endswith(f"{folder}: nothing to mend.\n")
    for path in (tmp_path, tmp_path / "none"):
        bad = run("check", path, "--fix")
        assert (bad.exit_code, len(bad.stderr.splitlines())) == (2, 1), bad.output


LIGHT = """
import sys
from st_dimreduce import check
assert check(sys.argv[1]) == []
assert check(sys.argv[2])
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
