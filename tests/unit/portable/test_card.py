"""The model card, and the picture on it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from st_dimreduce import FitRecord, reduce_model, save_portable
from st_dimreduce.enums import Outcome
from st_dimreduce.models.attach import origin
from st_dimreduce.portable.card import MARK, figures_table, model_card, recommended
from st_dimreduce.portable.readers import Reading
from st_dimreduce.portable.serving import Serving
from st_dimreduce.record import record_in_card
from tests.helpers.hub_card_rules import card_errors
from tests.helpers.tiny import SENTENCES


def row(name, dimensions, precision, width, ndcg, overlap, **more):
    sizes = {"dimensions": dimensions, "precision": precision, "bytes_per_vector": width}
    return {"name": name, **sizes, "ndcg": ndcg, "recall": None, "overlap": overlap, "spearman": 0.9, **more}


def intervals(ndcg, overlap):
    return {"intervals": {"ndcg": [ndcg - 0.02, ndcg + 0.02], "overlap": [overlap - 0.01, overlap + 0.01]}}


FIGURES = {
    "rows": [
        row("base model", 384, "float32", 1536, 0.579, 1.0, seconds=3.0),
        row("untrained Tanh", 128, "float32", 512, 0.497, 0.494),
        row("reduced model", 128, "float32", 512, 0.589, 0.663, **intervals(0.589, 0.663), sts=0.81, retention=1.017),
        row("reduced | int4", 128, "int4", 64, 0.588, 0.651, **intervals(0.588, 0.651), unheard_of={"of": [1]}),
        row("signs of all numbers", 384, "binary", 48, 0.5, 0.57),
        row("reduced, binary", 128, "binary", 16, 0.47, 0.45, intervals=None),
    ],
    "documents": 2500,
    "queries": 1000,
    "metric": "ndcg",
}
RECORD = FitRecord(
    objective="quality",
    whitening=0.1,
    vectors=12000,
    cloze_pairs=900,
    trained_steps=400,
    seed=7,
    nested=(64, 128),
    mean_norm=2.57729123,
    base_model="sentence-transformers/all-MiniLM-L6-v2",
    license="apache-2.0",
    language=["en", "ko"],
    versions={"st_dimreduce": "0.1.0", "torch": "2.13.0"},
    figures=FIGURES,
)


def test_the_metadata_is_what_the_hub_reads():
    text = model_card(RECORD, 384, 128, "user/small")
    assert card_errors(text) == ([], [])
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert (data.base_model, data.license, data.language) == (
        "sentence-transformers/all-MiniLM-L6-v2",
        "apache-2.0",
        ["en", "ko"],
    )
    assert "dimensionality-reduction" in data.tags
    assert data.model_name == "user/small"
    found = {(result.metric_type, result.metric_name): result.metric_value for result in data.eval_results}
    assert found["cosine_ndcg@10", "nDCG@10, int4, 64 bytes per vector"] == 0.588
    assert found["neighbour_overlap@10", "overlap@10, binary, 16 bytes per vector"] == 0.45
    assert found["spearman_cosine", "STS, float32, 512 bytes per vector"] == 0.81
    assert len(found) == 3 * 3 + 1, "only what was measured, and only of the model itself"
    again = ModelCard(str(ModelCard(text)))
    assert again.data.to_dict() == data.to_dict()


def test_says_how_to_load_what_it_costs_how_it_was_fitted_and_whose_it_is():
    text = model_card(RECORD, 384, 128, "user/small", picture=True)
    for words in (
        'SentenceTransformer("user/small")',
        "# shape (2, 128)",
        "This is 512 bytes per vector instead of 1,536, or 64 stored as `int4`.",
        'Codes.of(model.encode_document(["A sentence", "Another sentence"]), "int4")',
        "(quality.png)",
        "2,500 documents, 1,000 queries",
        "In brackets: 95 % confidence intervals.",
        "| reduced model | 128 | float32 | 512 | 5.12 | 58.9 (56.9 to 60.9) | 81.0 | 66.3 (65.3 to 67.3) | 101.7 |",
        "| reduced / int4 | 128 | int4 | 64 | 0.64 | 58.8 (56.8 to 60.8) |  | 65.1 (64.1 to 66.1) |  | 90.0 |",
        "- objective: quality",
        "- cloze pairs for within-pair whitening: 900",
        "- steps of contrastive training: 400",
        "- vectors it was fitted on: 12000",
        "- sizes at which it may be truncated: 64, 128",
        "- mean norm of the vectors it reduces: 2.57729\n",
        "- with: st_dimreduce 0.1.0, torch 2.13.0",
        "names `apache-2.0`",
        "| overlap@10 | retention | Spearman of cosines |",
        MARK,
    ):
        assert words in text, text
    assert "kept" not in text
    assert "recall" not in figures_table(FIGURES), "what was not measured has no column"
    unlabelled = figures_table(FIGURES | {"metric": "overlap"})
    assert "retention" not in unlabelled, "it is the overlap"
    found = record_in_card(text)
    assert found == replace(RECORD, figures=None), "a loaded model has its card, and so its record"
    assert "quality.png" not in model_card(RECORD, 384, 128, "user/small")


def test_a_record_that_says_little_makes_a_card_that_says_little():
    text = model_card(FitRecord(), 32, 8)
    assert card_errors(text) == ([], [])
    assert ModelCard(text).data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    for words in ("path or name of this model", "32 bytes per vector instead of 128", "not on record", "look it up"):
        assert words in text
    for words in ("None", "Size and quality", "quantize", "with:"):
        assert words not in text


READINGS = [
    Reading("Sentence Transformers 6", Outcome.RIGHT, "modules.json names the head"),
    Reading("Text Embeddings Inference, Candle", Outcome.RIGHT, "modules.json names the head"),
    Reading("Text Embeddings Inference, CPU", Outcome.RIGHT, "modules.json names the head"),
    Reading("vLLM", Outcome.DIFFERENT, "it leaves `<b>Odd|` out", "use another"),
    Reading("transformers.js", Outcome.RIGHT, "the head is in the graph"),
    Reading("llama.cpp, Ollama", Outcome.UNREDUCED, "it reads no Dense", "use another"),
    Reading("txtai", Outcome.UNREDUCED, "it reads no Dense", "use another"),
]


def test_says_what_readers_make_of_it_and_how_those_are_called_that_are_right():
    serving = Serving(READINGS, "bert", "cls", ("fp32", "q8"))
    text = model_card(RECORD, 384, 128, "user/small", serving=serving)
    assert card_errors(text) == ([], [])
    assert {"onnx", "transformers.js", "text-embeddings-inference"} < set(ModelCard(text).data.tags)
    for words in (
        'await pipeline("feature-extraction", "user/small", { dtype: "fp32" }); // smaller: "q8"',
        'pooling: "cls"',
        'text-embeddings-router --model-id "user/small" --port 8080',
        "| Sentence Transformers 6; Text Embeddings Inference, Candle; Text Embeddings Inference, CPU; "
        "transformers.js | this model's vectors |",
        "| llama.cpp, Ollama; txtai | vectors that are not reduced: it reads no Dense |",
        "| vLLM | other vectors: it leaves '(b)Odd/' out |",
    ):
        assert words in text, text
    assert "vllm serve" not in text, "it gives other vectors"


@pytest.mark.parametrize(
    ("serving", "tags"),
    [
        (Serving(READINGS, "t5", "cls", ("fp32",)), {"onnx", "transformers.js"}),
        (Serving(READINGS[:2], "bert"), set()),
        (Serving(READINGS, "bert", None, ("fp32",)), {"onnx", "text-embeddings-inference"}),
        (Serving(READINGS[:3], "bert"), {"text-embeddings-inference"}),
        (Serving([]), set()),
    ],
)
def test_tags_only_what_is_so(serving, tags):
    text = model_card(RECORD, 384, 128, "user/small", serving=serving)
    plain = ModelCard(model_card(RECORD, 384, 128, "user/small")).data.tags
    assert set(ModelCard(text).data.tags) - set(plain) == tags
    for tag, words in {"transformers.js": "pipeline(", "text-embeddings-inference": "text-embeddings-router"}.items():
        assert (words in text) == (tag in tags)
    assert ("## Other readers" in text) == bool(serving.readings)


TASK = {
    "task": "ArguAna",
    "type": "Retrieval",
    "dataset": "mteb/arguana",
    "revision": "c22ab2a51041ffd869aaddef7af8d8215647e41a",
    "subset": "default",
    "split": "test",
    "metric": "ndcg_at_10",
    "value": 0.48123,
    "dimensions": 128,
    "precision": "int4",
    "bytes_per_vector": 64,
}


def test_results_of_mteb_are_results_that_the_hub_reads():
    elsewhere = TASK | {"task": "STS17", "subset": "ko-ko", "dataset": "/home/me/data set", "metric": "cosine_spearman"}
    cut = TASK | {"dimensions": 64, "bytes_per_vector": 32, "value": 0.4}
    record = replace(RECORD, figures={"mteb": [TASK, elsewhere, cut]})
    text = model_card(record, 384, 128, "user/small")
    assert card_errors(text) == ([], [])
    data = ModelCard(text).data
    assert "mteb" in data.tags
    first, other = data.eval_results
    assert (first.task_type, first.dataset_type, first.dataset_name) == ("Retrieval", "mteb/arguana", "MTEB ArguAna")
    assert (first.dataset_split, first.dataset_revision, first.metric_value) == ("test", TASK["revision"], 0.48123)
    assert (other.dataset_type, other.dataset_name) == ("unknown", "MTEB STS17 (ko-ko)")
    assert "| ArguAna | test | int4 | 64 | ndcg_at_10 | 48.1 |" in text
    assert "| ArguAna | test | int4 | 32 | ndcg_at_10 | 40.0 |" in text
    assert "Size and quality" not in text


def test_recommends_what_the_fit_chose_else_the_smallest_that_is_as_good():
    assert recommended(RECORD, 128) == ("int4", 64)
    chosen = replace(RECORD, precision="binary", choice={"best": {}})
    assert recommended(chosen, 128) == ("binary", 16)
    assert recommended(FitRecord(precision="int8"), 8) == ("int8", 8)
    unlabelled = replace(RECORD, figures={**FIGURES, "metric": "overlap"})
    assert recommended(unlabelled, 128) == ("float32", 512), "int4 retains 98 % of the overlap"


@pytest.mark.parametrize(
    ("card", "carried"),
    [
        ("---\nlicense: mit\nlanguage: [en, ko]\n---\n", {"license": "mit", "language": ["en", "ko"]}),
        (
            "---\nlicense: other\nlicense_name: x-1\nlicense_link: https://x.org/y\n---\n",
            {"license": "other", "license_name": "x-1", "license_link": "https://x.org/y"},
        ),
        ("---\nlicense: '`](http://x) **mine**'\nlanguage: 3\n---\n", {}),
        ("---\n: : : [\n---\n", {}),
        ("---\n- a list\n---\n", {}),
        ("no metadata", {}),
        ("", {}),
    ],
)
def test_whatever_is_in_another_card_is_harmless(tiny, card, carried):
    tiny._model_card_text = card
    assert origin(tiny) == {"base_model": None} | carried


def test_a_path_is_not_published(tiny, tmp_path):
    for place in (tmp_path, tmp_path / "gone", "../base", "C:\\models\\base"):
        tiny.model_card_data.base_model = str(place)
        save_portable(reduce_model(tiny, SENTENCES, 8), tmp_path / "p", overwrite=True)
        files = ("README.md", "st_dimreduce.json", "config.json")
        written = "".join((tmp_path / "p" / name).read_text() for name in files)
        assert str(place) not in written
        assert json.dumps(str(place)) not in written
    tiny.model_card_data.base_model = "user/base"
    save_portable(reduce_model(tiny, SENTENCES, 8), tmp_path / "p", overwrite=True)
    assert ModelCard.load(tmp_path / "p" / "README.md").data.base_model == "user/base"
