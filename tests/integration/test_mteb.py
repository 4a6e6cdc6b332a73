"""mteb's own tasks on codes: its scores are those of this package, and its results go on the model card."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import ModelCard
from scipy.stats import spearmanr

from st_dimreduce import reduce_model, save_portable
from st_dimreduce.apps.docstrings import package_pairs
from st_dimreduce.codes.metrics import retrieval
from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.codes.search import search
from tests.helpers.hub_card_rules import card_errors

pytestmark = [pytest.mark.component("mteb"), pytest.mark.wings("integrations", "codes")]
PRECISIONS = ["float32", "int8", "int4", "int2", "binary"]


@pytest.fixture(scope="module")
def texts():
    pairs = [pair for pair in dict(package_pairs("networkx")).items() if len(pair[1]) < 300][:100]
    return SimpleNamespace(queries=[query for query, _ in pairs[:20]], documents=[document for _, document in pairs])


@pytest.fixture(scope="module")
def reduced(minilm, texts):
    return reduce_model(minilm, texts.documents, 64)


@pytest.fixture(scope="module")
def tasks(texts):
    """A retrieval task and an STS task, whose data are in memory."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    def described(name, kind, score):
        data = {"path": "local", "revision": "1"}
        more = {"category": "t2t", "modalities": ["text"], "eval_splits": ["test"], "eval_langs": ["eng-Latn"]}
        return TaskMetadata(name=name, description=name, type=kind, main_score=score, dataset=data, **more)

    class Docstrings(AbsTaskRetrieval):
        metadata = described("Docstrings", "Retrieval", "ndcg_at_10")

        def load_data(self, num_proc=None, **_):
            given = {"queries": texts.queries, "corpus": texts.documents}
            split = {
                name: Dataset.from_list([{"id": f"{name}{i}", "text": text} for i, text in enumerate(some)])
                for name, some in given.items()
            }
            relevant = {f"queries{i}": {f"corpus{i}": 1} for i in range(len(texts.queries))}
            self.dataset = {"default": {"test": {**split, "relevant_docs": relevant, "top_ranked": None}}}
            self.data_loaded = True

    class Neighbours(AbsTaskSTS):
        metadata = described("Neighbours", "STS", "cosine_spearman")
        min_score, max_score = 0, 1

        def load_data(self, num_proc=None, **_):
            scores = [(7 * i % 20) / 20 for i in range(20)]
            columns = {"sentence1": texts.queries, "sentence2": texts.documents[:20], "score": scores}
            self.dataset = {"test": Dataset.from_dict(columns)}
            self.data_loaded = True

    return [Docstrings(), Neighbours()]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_are_those_of_this_package(reduced, texts, tasks, precision):
    import mteb

    from st_dimreduce.integrations.mteb import CodesModel

    found = mteb.evaluate(CodesModel(reduced, precision), tasks, cache=None, show_progress_bar=False)
    given = {result.task_name: result.get_score() for result in found.task_results}
    queries, documents = reduced.encode_query(texts.queries), reduced.encode_document(texts.documents)
    codes = quantize(documents, precision)
    _, rows = search(queries, codes, precision)
    ndcg, _ = retrieval(rows, [{i} for i in range(len(queries))])
    assert 0.5 < ndcg.mean() < 1
    assert given["Docstrings"] == pytest.approx(ndcg.mean(), abs=1e-4)
    first, second = (dequantize(quantize(some, precision), precision, 64) for some in (queries, documents[:20]))
    scores = [(7 * i % 20) / 20 for i in range(20)]
    assert given["Neighbours"] == pytest.approx(spearmanr((first * second).sum(axis=1), scores)[0], abs=1e-3)


def test_queries_stay_float_and_all_else_is_decoded_from_codes(reduced, texts):
    from mteb.types import PromptType

    from st_dimreduce.integrations.mteb import CodesModel

    class Encoder:
        def encode(self, inputs, **_):
            return reduced.encode(inputs, convert_to_tensor=True).half()

        def similarity(self, *_):
            raise AssertionError("codes are compared by the cosine")

        similarity_pairwise = similarity

    Encoder.mteb_model_meta = CodesModel(reduced).mteb_model_meta
    model = CodesModel(Encoder(), "int4")
    some = texts.queries[:8]
    vectors = reduced.encode(some, convert_to_tensor=True).half().float().numpy()
    assert np.array_equal(model.encode(some, prompt_type=PromptType.query), vectors)
    decoded = dequantize(quantize(vectors, "int4"), "int4", 64)
    for kind in (PromptType.document, None):
        assert np.array_equal(model.encode(some, prompt_type=kind), decoded)
    cosines = model.similarity(vectors, decoded).numpy()
    assert np.allclose(np.diag(cosines), model.similarity_pairwise(vectors, decoded).numpy(), atol=1e-6)
    scores, _ = search(vectors, quantize(vectors, "int4"), "int4", 8)
    assert np.allclose(np.sort(cosines)[:, ::-1], scores, atol=1e-6)
    with pytest.raises(ValueError, match="encode_kwargs ask for 'int8' codes: give CodesModel the precision"):
        model.encode(some, precision="int8")


def test_results_are_mtebs_json_and_are_not_taken_for_those_of_another_head(reduced, minilm, texts, tasks, tmp_path):
    import mteb
    from mteb.cache import ResultCache

    from st_dimreduce.integrations.mteb import CodesModel

    cache = ResultCache(tmp_path)
    models = [CodesModel(reduced, precision, "user/small") for precision in ("int4", "binary")]
    other = reduce_model(minilm, texts.documents, 64, objective="fidelity")
    models.append(CodesModel(other, "int4", "user/small"))
    scores = [mteb.evaluate(model, tasks[0], cache=cache, show_progress_bar=False)[0].get_score() for model in models]
    assert len(set(scores)) == 3
    files = sorted(tmp_path.rglob("Docstrings.json"))
    assert sorted(json.loads(file.read_text())["scores"]["test"][0]["main_score"] for file in files) == sorted(scores)
    assert {model.mteb_model_meta.experiment_name for model in models} == {"codes_int4", "codes_binary"}


def test_results_go_on_the_model_card(reduced, tasks, tmp_path):
    import mteb

    from st_dimreduce.integrations.mteb import CodesModel

    models = [CodesModel(reduced, precision, "user/small") for precision in ("int4", "binary")]
    found = [mteb.evaluate(model, tasks, cache=None, show_progress_bar=False) for model in models]
    rows = [row for model, results in zip(models, found, strict=True) for row in model.rows(results, tasks)]
    save_portable(reduced, tmp_path / "small", figures={"mteb": rows})
    text = (tmp_path / "small" / "README.md").read_text(encoding="utf-8")
    assert card_errors(text) == ([], [])
    score = found[0].task_results[0].get_score()
    assert f"| Docstrings | test | int4 | 32 | ndcg_at_10 | {100 * score:.1f} |" in text
    data = ModelCard(text).data
    assert "mteb" in data.tags
    kept = {(each.task_type, each.dataset_name, each.metric_name): each.metric_value for each in data.eval_results}
    assert kept["Retrieval", "MTEB Docstrings", "ndcg_at_10, int4, 32 bytes per vector"] == pytest.approx(score)
    assert len(kept) == 4
    with pytest.raises(ValueError, match=r"these are results of user/small, revision \w+: expected those of .* binary"):
        models[1].rows(found[0], tasks)
    with pytest.raises(ValueError, match="mteb lists no task 'Docstrings': give it in tasks"):
        models[0].rows(found[0])


def test_says_what_it_cannot_wrap(minilm, reduced):
    from st_dimreduce.integrations.mteb import CodesModel

    with pytest.raises(ValueError, match="the model is a str: expected a SentenceTransformer or mteb's encoder"):
        CodesModel("small")
    with pytest.raises(ValueError, match="unknown precision 'int3'"):
        CodesModel(reduced, "int3")
    with pytest.raises(ValueError, match="the model ends in Transformer, it has no head"):
        CodesModel(minilm, "int4")
    with pytest.raises(ValueError, match="a CodesModel has no record of a precision: give one"):
        CodesModel(CodesModel(reduced))
