"""Requests to the search page through a real server; tests/integration/test_browser.py looks at the page itself."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_dimreduce import DimReduce, Head, save_portable
from st_dimreduce.apps.search_page import LONGEST_QUERY, Corpus
from st_dimreduce.models.attach import detach_head
from tests.helpers.command import run
from tests.helpers.serving import TEXTS, ask, fetch, make_base, make_folder, served
from tests.helpers.tiny import SENTENCES

COMMAND = str(Path(sys.executable).with_name("st-dimreduce"))


@pytest.fixture(scope="module")
def base(tiny_path):
    return make_base(tiny_path)


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    return make_folder(base, tmp_path_factory.mktemp("serve") / "small")


@pytest.fixture(scope="module")
def corpus(folder):
    return Corpus(folder, TEXTS)


@pytest.fixture(scope="module")
def site(corpus):
    with served(corpus) as where:
        yield where


def test_the_body_is_the_base_model(base, folder):
    reduced = SentenceTransformer(str(folder), device="cpu")
    before = [type(module).__name__ for module in reduced]
    body, head = detach_head(reduced)
    for encode in ("encode_query", "encode_document"):  # each with its own prompt
        vectors = getattr(body, encode)(TEXTS)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        assert np.allclose(unit, getattr(base, encode)(TEXTS), atol=1e-6)
        both = head.forward(vectors)
        both /= np.linalg.norm(both, axis=1, keepdims=True)
        assert np.allclose(both, getattr(reduced, encode)(TEXTS), atol=1e-6)
    assert [type(module).__name__ for module in reduced] == before
    with pytest.raises(ValueError, match="it has no head: give a reduced model"):
        detach_head(base)
    tokens = SentenceTransformer(modules=[base[0], DimReduce(32, 8, module_input_name="token_embeddings")])
    with pytest.raises(ValueError, match="reads 'token_embeddings', expected 'sentence_embedding'"):
        detach_head(tokens)


def test_both_models_answer_as_they_do_by_themselves(site, base, folder):
    status, found = ask(site, q="a small dog sleeps", k=7)
    assert status == 200
    reduced = SentenceTransformer(str(folder), device="cpu")
    for name, model in (("full", base), ("reduced", reduced)):
        scores = model.encode_query(["a small dog sleeps"]) @ model.encode_document(TEXTS).T
        answers = found[name]["answers"]
        assert [answer["rank"] for answer in answers] == list(range(1, 8))
        assert all(answer["text"] == TEXTS[answer["document"]] for answer in answers)
        if name == "full":
            assert [answer["document"] for answer in answers] == np.argsort(-scores[0], kind="stable")[:7].tolist()
        got = [answer["score"] for answer in answers]
        assert got == sorted(got, reverse=True)
        expected = scores[0][[answer["document"] for answer in answers]]
        assert np.allclose(got, expected, atol=1e-4 if name == "full" else 0.15), "int4 rounds the documents"
        assert found[name]["search_ms"] > 0
        assert found[name]["encoding_ms"] > 0
    sizes = [
        (one["bytes_per_vector"], one["total_bytes"], one["precision"]) for one in (found["full"], found["reduced"])
    ]
    assert sizes == [(128, 128 * len(TEXTS), "float32"), (4, 4 * len(TEXTS), "int4")]


def test_models_are_called_by_their_names_and_three_queries_are_offered(corpus, folder):
    assert corpus.about["full"] == "org/base"
    assert corpus.about["models"] == [{"label": folder.name, "precision": "int4"}]
    assert corpus.about["examples"] == TEXTS[:3], "short texts, which have no sentences to spare"
    long = [f"{text}. " + "a bird sings and a fish swims near the old river. " * 4 for text in SENTENCES[:9]]
    examples = Corpus(folder, long).about["examples"]
    assert examples
    assert all(any(example in text for text in long) and len(example) <= 70 for example in examples)
    given = Corpus(folder, TEXTS, examples=["a cat"])
    assert given.about["examples"] == ["a cat"]


@pytest.fixture(scope="module")
def folders(base, folder, tmp_path_factory):
    """Reduced models: two of one body, and one whose body was trained."""
    work = tmp_path_factory.mktemp("several")
    smaller = make_folder(base, work / "smaller", 4, "int8")
    return [folder, smaller, make_folder(base, work / "trained", trained=True)]


@pytest.fixture(scope="module")
def several(folders):
    with served(Corpus(folders, TEXTS)) as where:
        yield where


def test_each_of_several_models_answers_as_it_does_by_itself(several, base, folders):
    sizes = [("small", "int4", 4), ("smaller", "int8", 4), ("trained", "int4", 4)]
    about = json.loads(fetch(f"{several}/about")[2])
    assert about["models"] == [{"label": label, "precision": precision} for label, precision, _ in sizes]
    by_full = base.encode_query(["a small dog sleeps"]) @ base.encode_document(TEXTS).T
    for folder, (label, precision, width) in zip(folders, sizes, strict=True):
        _, found = ask(several, q="a small dog sleeps", model=label)
        reduced = found["reduced"]
        assert (found["model"], reduced["precision"], reduced["bytes_per_vector"]) == (label, precision, width)
        best = np.argsort(-by_full[0], kind="stable")[:10].tolist()
        assert [answer["document"] for answer in found["full"]["answers"]] == best, "that of the first body"
        assert min(reduced["encoding_ms"], found["full"]["encoding_ms"]) > 0
        model = SentenceTransformer(str(folder), device="cpu")
        scores = (model.encode_query(["a small dog sleeps"]) @ model.encode_document(TEXTS).T)[0]
        _, whole = ask(several, q="a small dog sleeps", k=100, precision="float32", model=label)
        got = {answer["document"]: answer["score"] for answer in whole["reduced"]["answers"]}
        assert len(got) == len(TEXTS)
        assert all(abs(scores[document] - score) < 1e-3 for document, score in got.items()), label


def test_the_first_model_answers_where_none_is_named(several):
    found, first = (ask(several, q="a fish", **named)[1] for named in ({}, {"model": "small"}))
    assert found["model"] == "small"
    assert found["reduced"]["answers"] == first["reduced"]["answers"]


@pytest.mark.parametrize("wrong", ["large", "", "<script>"])
def test_an_unknown_model_is_refused_by_naming_those_there_are(several, wrong):
    said = {"error": f"unknown model {wrong!r}: choose from small, smaller, trained"}
    assert ask(several, q="a fish", model=wrong) == (400, said)


def test_models_of_one_name_and_no_model_at_all_are_refused(folder, tmp_path):
    (tmp_path / folder.name).symlink_to(folder)
    with pytest.raises(ValueError, match=r"reduced models \['.*', '.*'\] have folders of one name: rename them"):
        Corpus([folder, str(tmp_path / folder.name)], TEXTS)
    with pytest.raises(ValueError, match="there is no reduced model: give at least one"):
        Corpus([], TEXTS)


def test_several_models_beside_another_base(base, folders, tmp_path):
    base.save_pretrained(str(tmp_path / "base"))
    corpus = Corpus(folders[::-1], TEXTS, base=tmp_path / "base")
    scores = (base.encode_query(["a fish swims"]) @ base.encode_document(TEXTS).T)[0]
    for label in ("trained", "small", "smaller"):
        found = corpus.search("a fish swims", 5, "float32", label)
        assert [answer["document"] for answer in found["full"]["answers"]] == np.argsort(-scores)[:5].tolist()
    assert corpus.about["full"] == "base"


def test_many_texts_are_encoded_in_parts(corpus, folders, monkeypatch, tmp_path):
    monkeypatch.setattr("st_dimreduce.models.encoding.CHUNK", 7)
    for _ in range(2):  # the second takes all from the cache
        found = Corpus(folders, TEXTS, cache=tmp_path).search("a small dog", 20)
        for side in ("full", "reduced"):
            whole = corpus.search("a small dog", 20)[side]["answers"]
            assert [one["document"] for one in found[side]["answers"]] == [one["document"] for one in whole]


def test_texts_may_be_longer_than_queries(folder):
    corpus = Corpus(folder, ["a cat " * LONGEST_QUERY, "a dog"])
    assert len(corpus.search("a cat")["reduced"]["answers"]) == 2


def test_differences_are_told_from_both_sides(site):
    _, found = ask(site, q="a fish swims near", k=5, precision="binary")
    ranks = {name: {one["document"]: one for one in found[name]["answers"]} for name in ("full", "reduced")}
    for name, other in (("full", "reduced"), ("reduced", "full")):
        for document, answer in ranks[name].items():
            there = ranks[other].get(document)
            assert answer["other_rank"] == (None if there is None else there["rank"])
    assert found["shared"] == len(ranks["full"].keys() & ranks["reduced"].keys()) < 5
    assert found["reduced"]["bytes_per_vector"] == 1


def test_float32_of_the_reduced_model_and_more_answers_than_texts(site, folder):
    _, found = ask(site, q="a fish", k=100, precision="float32")
    assert len(found["full"]["answers"]) == len(found["reduced"]["answers"]) == found["shared"] == len(TEXTS)
    reduced = SentenceTransformer(str(folder), device="cpu")
    scores = (reduced.encode_query(["a fish"]) @ reduced.encode_document(TEXTS).T)[0]
    got = {answer["document"]: answer["score"] for answer in found["reduced"]["answers"]}
    assert all(abs(scores[document] - score) < 1e-3 for document, score in got.items())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "the query is empty: type what to look for"),
        ({"q": " \t"}, "the query is empty"),
        ({"q": "x" * (LONGEST_QUERY + 1)}, "the query has 2,001 characters: give at most 2,000"),
        ({"q": "cat", "k": "0"}, "k=0: choose 1 to 100"),
        ({"q": "cat", "k": "101"}, "k=101: choose 1 to 100"),
        ({"q": "cat", "k": "-1"}, "k='-1': choose 1 to 100"),
        ({"q": "cat", "k": "9" * 5000}, "k='99999999999999999999': choose 1 to 100"),
        ({"q": "cat", "k": "ten"}, "k='ten': choose 1 to 100"),
        ({"q": "cat", "precision": "int3"}, "unknown precision 'int3': choose from float32, int8"),
    ],
)
def test_a_bad_request_gets_status_400_and_says_why(site, parameters, message):
    status, body = ask(site, **parameters)
    assert (status, list(body)) == (400, ["error"])
    assert body["error"].startswith(message)


def test_only_this_machine_by_its_own_name_is_answered(site, corpus):
    port = int(site.rpartition(":")[2])
    assert site.startswith("http://127.0.0.1:")
    for host, status in (("evil.example", 400), (f"evil.example:{port}", 400), ("127.0.0.1.evil.example", 400),
                         ("localhost", 200), (f"127.0.0.1:{port}", 200)):  # fmt: skip
        for path in ("/", "/about", "/search?q=cat"):
            assert fetch(site + path, Host=host)[0] == status, host
    with socket.socket() as free:  # bound to loopback alone: another address of the machine has the port free
        free.bind(("127.0.0.2", port))
    status, headers, page = fetch(site + "/")
    assert "script-src 'sha256-" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert {fetch(site + path)[1]["X-Frame-Options"] for path in ("/", "/about", "/search?q=cat", "/search")} == {
        "DENY"
    }
    assert set(re.findall(r"(?:src|href)=\S+", page)) == {'href="data:,">'}, "the page is whole in itself"
    assert fetch(site + "/../pyproject.toml")[0] == 404


def test_another_base_model_and_a_cut_reduced_one(base, folder, corpus, tmp_path):
    reduced = SentenceTransformer(str(folder), device="cpu")
    reduced.truncate_dim = 4
    reduced[0].auto_model.embeddings.word_embeddings.weight.data.mul_(-0.5)  # as if trained end to end
    cut = tmp_path / "cut"
    save_portable(reduced, cut)
    base.save_pretrained(str(tmp_path / "base"))
    found = Corpus(cut, TEXTS, base=tmp_path / "base").search("a small dog", 5)
    assert found["reduced"]["dimensions"] == 4
    same = corpus.search("a small dog", 5)
    assert found["full"]["answers"][0]["text"] == same["full"]["answers"][0]["text"]
    by_body = Corpus(cut, TEXTS).search("a small dog", 5)
    assert [a["score"] for a in by_body["full"]["answers"]] != [a["score"] for a in same["full"]["answers"]]


def test_many_ask_at_once(site):
    expected = {q: ask(site, q=q)[1]["reduced"]["answers"] for q in SENTENCES[:4]}
    wrong = []

    def repeat(q):
        wrong.extend(1 for _ in range(5) if ask(site, q=q)[1]["reduced"]["answers"] != expected[q])

    threads = [threading.Thread(target=repeat, args=(q,)) for q in SENTENCES[:4] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Waiting:
    """A corpus whose searches end when the test releases them."""

    def __init__(self):
        self.about, self.begun, self.released = {}, threading.Semaphore(0), threading.Event()

    def search(self, query, k, precision, model):
        self.begun.release()
        assert self.released.wait(60)
        return {"query": query}


def test_too_many_searches_are_refused_while_the_page_answers():
    corpus = Waiting()
    with served(corpus) as site, ThreadPoolExecutor(8) as threads:
        first = [threads.submit(ask, site, q=f"long {number}") for number in range(8)]
        for _ in first:
            assert corpus.begun.acquire(timeout=60)
        for number in range(60):
            status, said = ask(site, q=f"more {number}")
            assert (status, said["error"]) == (503, "8 searches are under way: try again in a moment")
        assert fetch(f"{site}/search?q=more")[1]["Retry-After"] == "1"
        assert fetch(f"{site}/")[0] == fetch(f"{site}/about")[0] == 200, "the page is there all the while"
        corpus.released.set()
        assert [done.result()[0] for done in first] == [200] * 8
        assert ask(site, q="honest") == (200, {"query": "honest"})
    assert corpus.begun.acquire(blocking=False), "that of the honest one"
    assert not corpus.begun.acquire(blocking=False), "what was refused was not searched for"


def connect(site, *sent):
    client = socket.create_connection(("127.0.0.1", int(site.rpartition(":")[2])), timeout=60)
    for each in sent:
        client.sendall(each)
    return client


REQUEST = b"GET /about HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_a_connection_that_asks_nothing_more_is_closed():
    with served(Waiting()) as site, connect(site, REQUEST) as client:
        answer = b""
        while received := client.recv(1 << 16):  # a timeout would be raised
            answer += received
        assert answer.startswith(b"HTTP/1.1 200 ")


def test_requests_beyond_the_most_connections_are_refused():
    with served(Waiting()) as site:
        clients = [connect(site) for _ in range(200)]
        with connect(site, REQUEST) as refused:
            assert refused.recv(1 << 16).startswith(b"HTTP/1.1 503 ")
        for client in clients:
            client.close()
        deadline = time.monotonic() + 60
        while fetch(f"{site}/about")[0] != 200 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert fetch(f"{site}/about")[0] == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("BASE",), "it has no head: give a reduced model"),
        (("HEAD",), "holds a head without a model: put it behind its model first (st-dimreduce attach)"),
        (("no/such-model",), "no model could be loaded from 'no/such-model'"),
        (("SMALL", "--base", "no/such-model"), "no model could be loaded from 'no/such-model'"),
        (("SMALL", "SMALL"), "have folders of one name: rename them"),
        (("SMALL", "--port", "70000"), "port=70000: choose 0 to 65535"),
        (("SMALL", "--texts", "none.txt"), "no file none.txt"),
    ],
)
def test_bad_input_is_one_line_and_status_2(base, folder, tmp_path, arguments, message):
    base.save_pretrained(str(tmp_path / "base"))
    Head(np.eye(4, 8, dtype=np.float32)).save(tmp_path / "head")
    (tmp_path / "texts.txt").write_text("a cat")
    names = {"BASE": str(tmp_path / "base"), "HEAD": str(tmp_path / "head"), "SMALL": str(folder)}
    given = [names.get(argument, argument) for argument in arguments]
    texts = [] if "--texts" in given else ["--texts", str(tmp_path / "texts.txt")]
    port = [] if "--port" in given else ["--port", "0"]
    done = run("serve", *given, *texts, *port)
    assert done.exit_code == 2, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
