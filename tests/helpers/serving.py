"""Shared by the tests of the search page: a small reduced model, hostile texts, a server and a client."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from dataclasses import replace

from st_dimreduce import reduce_model, save_portable
from st_dimreduce.apps.search_page import address, bind, make_app, make_server
from st_dimreduce.dim_reduce import head_of, keep_record
from tests.helpers.tiny import SENTENCES, make_tiny

ATTACK = """<img src=x onerror="document.title='hit'"><script>document.title='hit'</script> the cat & "dog" """.strip()
KOREAN = "서울에서 부산까지 가는 가장 빠른 길"
LONG = "the old red bird sings " * 60
TEXTS = [*SENTENCES[:40], ATTACK, KOREAN, LONG, "supercalifragilistic" * 30]


def make_base(tiny_path):
    model = make_tiny(tiny_path)
    model.prompts = {"query": "query : ", "document": "document : "}
    return model


def make_folder(base, path, dim=8, precision="int4", trained=False):
    """A reduced model in portable form, fitted to be stored in int4; its body is the base model's or a trained one."""
    model = reduce_model(base, SENTENCES, dim, objective="fidelity")
    _, record = head_of(model)
    keep_record(model, replace(record, precision=precision, base_model="org/base"))
    if trained:
        model[0].auto_model.embeddings.word_embeddings.weight.data.mul_(-0.5)
    save_portable(model, path)
    return path


@contextmanager
def served(corpus):
    """The page's address, served as the command does, but in a thread."""
    bound = bind(0)
    server = make_server(make_app(corpus))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield address(bound)
    finally:
        server.should_exit = True
        thread.join(30)
        bound.close()
    assert not thread.is_alive()


def fetch(url, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def ask(site, **parameters):
    status, _, body = fetch(f"{site}/search?{urllib.parse.urlencode(parameters)}")
    return status, json.loads(body)
