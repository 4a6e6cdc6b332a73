"""The portable form, saved with the newest Sentence Transformers, in the versions that people still run."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from transformers import AutoTokenizer, ModernBertConfig, ModernBertModel, Qwen3Config, Qwen3Model

from st_dimreduce import DimReduce, Head, reduce_model, save_portable
from st_dimreduce.dim_reduce import keep_record
from st_dimreduce.portable.layout import misread_before
from tests.helpers.environments import WITHOUT_US, packages, run_python
from tests.helpers.kinds import KINDS, make
from tests.helpers.tiny import SENTENCES, trainable

ROOT = Path(__file__).parent.parent.parent
TRANSFORMERS_4 = {"transformers": "4.57.6", "huggingface_hub": "0.36.2", "tokenizers": "0.22.2", "datasets": "4.4.1"}
THETAS = {"full": 50.0, "sliding": 7.0}
VERSIONS = {
    "3.4.1": {"sentence-transformers": "3.4.1", **TRANSFORMERS_4},
    "4.1.0": {"sentence-transformers": "4.1.0", **TRANSFORMERS_4},
    "5.1.0": {"sentence-transformers": "5.1.0", **TRANSFORMERS_4},
    "6.0.0": {"sentence-transformers": "6.0.0"},  # takes the transformers 5 that is installed
    "newest": {},
}
ON_EVERY_CHANGE = ("3.4.1", "newest")


def versions(name, *values):
    """Return parameters of a test, marked `versions` unless the version is the oldest or the newest."""
    return pytest.param(name, *values, marks=() if name in ON_EVERY_CHANGE else pytest.mark.versions, id=name)


ENCODE = """
import json, sys
from importlib.metadata import version
import datasets, huggingface_hub, numpy as np, sentence_transformers, tokenizers, transformers
expected, texts, folders, options, out = json.loads(sys.argv[1])
modules = sentence_transformers, transformers, huggingface_hub, tokenizers, datasets
found = {module.__name__.replace("e_t", "e-t"): module.__version__ for module in modules}
assert found == expected, (found, expected)
vectors = {}
for name, folder in folders.items():
    model = sentence_transformers.SentenceTransformer(folder, device="cpu", **options)
    vectors[name] = model.encode(texts)
    if name in ("mean", "static"):
        model.save(out + name)
np.savez(out, **vectors)
print(json.dumps(found))
"""


def requirements_of(name):
    """Return sets of requirements to install: what several versions share is installed once."""
    own = [f"{package}=={number}" for package, number in VERSIONS[name].items()]
    return [requirements for requirements in (own[:1], own[1:]) if requirements]


def encode_with(name, folders, texts, out, *, code=WITHOUT_US + ENCODE, path=(), **options):
    """Encode with each folder's model in one process that has the named version; returns a table of vectors."""
    pinned, places = VERSIONS[name], [packages(*requirements) for requirements in requirements_of(name)]
    expected = {
        package: pinned.get(package, version(package)) for package in ("sentence-transformers", *TRANSFORMERS_4)
    }
    arguments = [expected, texts, {key: str(folder) for key, folder in folders.items()}, options, str(out)]
    run_python(os.pathsep.join(map(str, [*places, *path])), code, json.dumps(arguments))
    return np.load(out)


def bases(tiny_path, minilm, folder):
    """Yield names and base models: the kinds that old readers must know."""
    transformer = Transformer(tiny_path)
    yield "minilm", minilm
    yield "mean", SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu")
    yield "cls", SentenceTransformer(modules=[transformer, Pooling(32, "cls"), Normalize()], device="cpu")
    torch.manual_seed(0)
    dense = Dense(32, 24, activation_function=None)
    yield "dense", SentenceTransformer(modules=[transformer, Pooling(32, "mean"), dense, Normalize()], device="cpu")
    static = StaticEmbedding(AutoTokenizer.from_pretrained(tiny_path), embedding_dim=32)
    yield "static", SentenceTransformer(modules=[static], device="cpu")
    # Rotary positions of other bases than the defaults, and more special tokens: all of these moved between 4 and 5.
    tokenizer = AutoTokenizer.from_pretrained(tiny_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ONE]", "[TWO]"]})
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"vocab_size": len(tokenizer), "pad_token_id": 0, "max_position_embeddings": 24}
    ropes = {f"{kind}_attention": {"rope_type": "default", "rope_theta": base} for kind, base in THETAS.items()}
    qwen = Qwen3Config(**sizes, num_key_value_heads=1, head_dim=16, rope_parameters=ropes["full_attention"])
    bert = ModernBertConfig(**sizes, rope_parameters=ropes, local_attention=4, global_attn_every_n_layers=2)
    for name, body, mode in (("qwen", Qwen3Model(qwen), "lasttoken"), ("modernbert", ModernBertModel(bert), "cls")):
        tokenizer.save_pretrained(folder / name)
        body.save_pretrained(folder / name)
        modules = [Transformer(str(folder / name)), Pooling(32, mode)]
        yield name, SentenceTransformer(modules=modules, device="cpu")


TEXTS = [*SENTENCES[:20], " ".join(SENTENCES[20:24]), "[ONE] cat [TWO]", "x"]


@pytest.fixture(scope="module")
def portable(tiny_path, minilm, tmp_path_factory):
    """Folders of the portable form, and the vectors of the models they were saved from."""
    folder = tmp_path_factory.mktemp("portable")
    folders, vectors = {}, {}
    for name, base in bases(tiny_path, minilm, folder / "bases"):
        reduced = reduce_model(base, SENTENCES, 8)
        keep_record(reduced, replace(DimReduce.from_model(reduced).record, precision="int4"))
        save_portable(reduced, folder / name)
        folders[name], vectors[name] = folder / name, reduced.encode(TEXTS)
    return folders, vectors


@pytest.fixture(scope="module", params=map(versions, VERSIONS))
def found(request, portable, tmp_path_factory):
    """The vectors of a version, and the folder in which it saved some of the models again."""
    out = tmp_path_factory.mktemp("found") / "vectors.npz"
    return encode_with(request.param, portable[0], TEXTS, out), out.parent


def test_the_portable_form_gives_the_same_vectors(found, portable):
    found, vectors = found[0], portable[1]
    assert set(found) == set(vectors)
    furthest = {key: float(np.abs(found[key] - vectors[key]).max()) for key in vectors}
    assert max(furthest.values()) <= 1e-6, furthest


@pytest.mark.parametrize("kind", ["mean", "static"])
def test_the_record_is_kept_where_a_version_saves_the_model_again(found, portable, kind):
    again, record = found[1] / f"vectors.npz{kind}", Head.load(portable[0][kind]).record
    assert not (again / "st_dimreduce.json").exists()
    assert record.mean_norm > 0
    for head in (Head.load(again), DimReduce.from_model(SentenceTransformer(str(again), device="cpu"))):
        assert (head.precision, head.record) == ("int4", record)


# Whose base models older versions do not load either; of the layers of a DistilBERT they give the last alone.
OLDEST = {"two towers": "5.1.0", "texts and images": "6.0.0", "layers weighted": "6.0.0"}


@pytest.mark.parametrize("name", map(versions, ["3.4.1", "5.1.0", "6.0.0"]))
def test_every_kind_in_the_oldest_version_that_loads_its_base_model(name, tiny_path, tmp_path):
    folders, vectors = {}, {}
    refused = {"bag of words"}
    for number, kind in enumerate(kind for kind in KINDS if OLDEST.get(kind, "3.4.1") <= name and kind not in refused):
        model = reduce_model(make(kind, tiny_path, tmp_path / f"base {number}"), SENTENCES, 8)
        save_portable(model, tmp_path / kind)
        folders[kind], vectors[kind] = tmp_path / kind, model.encode(SENTENCES)
    found = encode_with(name, folders, SENTENCES, tmp_path / "vectors.npz")
    assert set(found) == set(vectors)
    furthest = {key: float(np.abs(found[key] - vectors[key]).max()) for key in vectors}
    assert max(furthest.values()) <= 1e-5, furthest


SIDES = [
    (side, mode, prompt)
    for side in ("left", "right")
    for mode in ("cls", "mean", "max", "weightedmean", "lasttoken")
    for prompt in (True, False)
]


@pytest.fixture(scope="module")
def poolings(tiny_path, tmp_path_factory):
    """Every side, mode and treatment of a prompt in the portable form, refused or not, and the models' vectors."""
    folder, folders, vectors = tmp_path_factory.mktemp("poolings"), {}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("st_dimreduce.portable.check.misread_before", lambda *_: None)
        for side, mode, prompt in SIDES:
            transformer, key = Transformer(tiny_path), f"{side} {mode} {prompt}"
            transformer.tokenizer.padding_side = side
            pooling = Pooling(32, mode, include_prompt=prompt)
            model = SentenceTransformer(modules=[transformer, pooling], device="cpu")
            model.prompts, model.default_prompt_name = {"p": "small dog "}, "p"
            reduced = reduce_model(model, SENTENCES, 8)
            save_portable(reduced, folder / key)
            folders[key], vectors[key] = folder / key, reduced.encode(TEXTS)
    return folders, vectors


@pytest.mark.parametrize("name", map(versions, ["3.4.1", "5.1.0", "6.0.0"]))
def test_poolings_are_refused_exactly_where_older_versions_give_other_vectors(name, poolings, tmp_path):
    found = encode_with(name, poolings[0], TEXTS, tmp_path / "vectors.npz")
    elsewhere = {key for key in found if np.abs(found[key] - poolings[1][key]).max() > 1e-4}
    named = {f"{side} {mode} {prompt}": misread_before(side, [mode], prompt) for side, mode, prompt in SIDES}
    refused = {key for key, said in named.items() if said}
    for_this = {key for key in refused if name != "6.0.0" or named[key][1].endswith("6.1")}
    assert elsewhere <= refused, "something that differs is written"
    assert for_this <= elsewhere, "something is refused for nothing"


IN_DENSE = """
import sys
import sentence_transformers
try:
    model = sentence_transformers.SentenceTransformer(sys.argv[1], device="cpu")
    print("lost", hasattr(model[2], "record"))
except TypeError as error:
    assert "record" in str(error), error
    print("refused")
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        versions("3.4.1", "refused"),
        versions("4.1.0", "refused"),
        versions("5.1.0", "refused"),
        versions("newest", "lost False"),
    ],
)
def test_the_record_could_not_be_in_the_heads_own_config(name, expected, portable, tmp_path):
    folder = Path(shutil.copytree(portable[0]["mean"], tmp_path / "in dense"))
    config = json.loads((folder / "2_Dense" / "config.json").read_text())
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config | {"record": {"precision": "int4"}}))
    places = [packages(*requirements) for requirements in requirements_of(name)]
    printed = run_python(os.pathsep.join(map(str, places)), WITHOUT_US + IN_DENSE, folder)
    assert printed.splitlines()[-1] == expected


REFUSED = """
for folder in folders.values():
    try:
        sentence_transformers.SentenceTransformer(folder, device="cpu")
        raise SystemExit("loaded without the flag")
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
assert "st_dimreduce" not in sys.modules
"""


@pytest.mark.parametrize("name", map(versions, ["6.0.0", "newest"]))
def test_the_plug_in_form_needs_the_flag_and_the_package_and_gives_the_same_vectors(name, tiny, tmp_path):
    reduced = trainable(reduce_model(tiny, SENTENCES, 8))
    assert type(reduced[2]) is DimReduce
    reduced.save_pretrained(str(tmp_path / "plug-in"))
    folders = {"plug-in": tmp_path / "plug-in"}
    options = {
        "code": ENCODE.replace("vectors = {}", REFUSED + "vectors = {}"),
        "path": [ROOT],
        "trust_remote_code": True,
    }
    found = encode_with(name, folders, TEXTS, tmp_path / "vectors.npz", **options)
    assert np.abs(found["plug-in"] - reduced.encode(TEXTS)).max() <= 1e-6
