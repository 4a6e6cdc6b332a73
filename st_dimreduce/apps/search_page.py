"""Web page that searches texts with a full model and a reduced one, side by side."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from st_dimreduce.codes.codes import Codes
from st_dimreduce.dim_reduce import head_of
from st_dimreduce.enums import Precision
from st_dimreduce.errors import MissingExtraError, UserError
from st_dimreduce.fitting.cloze import cloze_pairs
from st_dimreduce.models.attach import detach_head
from st_dimreduce.models.cache import Cache
from st_dimreduce.models.encoding import SharedEncoder
from st_dimreduce.models.load import check_names, load_head, load_model
from st_dimreduce.progress import progress_bar
from st_dimreduce.untrusted import short

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route
except ModuleNotFoundError as error:
    raise MissingExtraError("the search page needs a web server: pip install 'st_dimreduce[serve]'") from error

LOOPBACK = "127.0.0.1"
MOST_ANSWERS, LONGEST_QUERY = 100, 2000
_LONGEST_TEXT = 2000  # characters of an answer that are sent
_EXAMPLES, _LONGEST_EXAMPLE = 3, 70  # queries to begin with, and their characters
_READ_FOR_EXAMPLES = 1000  # texts
_MOST_SEARCHES = 8  # one runs, the others wait: a long query takes a tenth of a second of a small model
_MOST_CONNECTIONS = 200
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
_FULL = ""  # the full model has no name, so that a reduced one may have any


class Corpus:
    """Texts encoded by a full model and reduced ones, ready for exact search.

    Models with the same body encode each text once between them, and the full model usually is that body. A model
    whose body was trained encodes texts and queries itself.

    Args:
        path: Folder or name of the reduced model, or a list of several.
        texts: The texts, at least one.
        base: Name or folder of the full model. Defaults to None: the body of the first reduced model. Give it where
            that was trained end to end, and is no longer the base model.
        examples: Queries that the page offers. Defaults to None: up to three sentences of the texts.
        batch_size: Texts encoded at a time. Defaults to 32.
        cache: Folder to keep embeddings in, and to take those from that are there. Defaults to None.

    Raises:
        UserError: If there is no text, if two reduced models have one name, or if a model cannot be loaded or has no
            head.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        texts: Sequence[str],
        *,
        base: str | os.PathLike[str] | None = None,
        examples: Sequence[str] | None = None,
        batch_size: int = 32,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        if not texts:
            raise UserError("there is no text to search: give at least one")
        models = _load_reduced([path] if isinstance(path, (str, os.PathLike)) else path)
        records = {label: head_of(model)[1] for label, model in models.items()}
        first, record = next(iter(records.items()))
        full = detach_head(models[first])[0] if base is None else load_model(base)
        self._encoder = SharedEncoder({_FULL: full, **models}, batch_size, None if cache is None else Cache(cache))
        self._texts, self._precisions = texts, {label: record.precision for label, record in records.items()}
        with progress_bar("Encoding", "texts", total=len(texts) * len(self._encoder.groups("document"))) as bar:
            self._rows = self._encoder.encode(texts, "document", bar)
        self._codes: dict[tuple[str, Precision], Codes] = {}  # of what has been searched
        # A tokenizer serves one thread at a time, and the first search of a thread takes longer than the next ones.
        self._thread = ThreadPoolExecutor(1)
        self.about = {
            "full": _label(base or record.base_model or f"{first} without its head"),
            "models": [{"label": label, "precision": each.value} for label, each in self._precisions.items()],
            "documents": len(texts),
            "precisions": [precision.value for precision in Precision],
            "longest_query": LONGEST_QUERY,
            "examples": list(_examples(texts) if examples is None else examples),
        }
        self.search("cat")

    def search(
        self, query: str, k: int = 10, precision: Precision | str | None = None, model: str | None = None
    ) -> dict[str, Any]:
        """Search with the full and a reduced model, the documents of the full one stored as float32.

        Args:
            query: The query, 1 to 2,000 characters that are not all blank.
            k: Number of answers, 1 to 100. Defaults to 10.
            precision: Precision of the reduced documents. Defaults to None: what the model was fitted for.
            model: Which reduced model: the name of its folder, or that on the Hub. Defaults to None: the first.

        Returns:
            A dict that JSON can hold: the reduced ``model``; how many answers are ``shared``; and for the ``full`` and
            the ``reduced`` model the sizes, ``encoding_ms``, ``search_ms`` and ``answers``, each with its ``rank`` and
            its ``other_rank`` in the other model, None if it is not among that one's answers.

        Raises:
            UserError: If there is no such model, or an argument is out of range.
        """
        label = next(iter(self._precisions)) if model is None else model
        if label not in self._precisions:
            raise UserError(f"unknown model {short(label)}: choose from {', '.join(self._precisions)}")
        precision = self._precisions[label] if precision is None else Precision(precision)
        if not query.strip():
            raise UserError("the query is empty: type what to look for")
        if len(query) > LONGEST_QUERY:
            raise UserError(f"the query has {len(query):,} characters: give at most {LONGEST_QUERY:,}")
        if not 1 <= k <= MOST_ANSWERS:
            raise UserError(f"k={k}: choose 1 to {MOST_ANSWERS}")
        full, reduced = self._thread.submit(self._search_both, query, k, precision, label).result()
        ranks = [{answer["document"]: answer["rank"] for answer in side["answers"]} for side in (full, reduced)]
        for side, other in ((full, ranks[1]), (reduced, ranks[0])):
            for answer in side["answers"]:
                answer["other_rank"] = other.get(answer["document"])
        shared = len(ranks[0].keys() & ranks[1].keys())
        return {"query": query, "k": k, "model": label, "shared": shared, "full": full, "reduced": reduced}

    def _search_both(self, query: str, k: int, precision: Precision, label: str) -> list[dict[str, Any]]:
        before = dict(self._encoder.seconds)
        embedded = self._encoder.encode([query], "query", names=[_FULL, label])
        found = []
        for name, stored in ((_FULL, Precision.FLOAT32), (label, precision)):
            if (name, stored) not in self._codes:
                self._codes[name, stored] = Codes.of(self._rows[name], stored)
                self._codes[name, stored].search(embedded[name], k)  # takes longer than the next ones
            codes = self._codes[name, stored]
            start = time.perf_counter()
            scores, rows = codes.search(embedded[name], k)
            search_seconds = time.perf_counter() - start
            found.append(
                {
                    "dimensions": codes.out_features,
                    "precision": stored.value,
                    "bytes_per_vector": codes.bytes_per_vector,
                    "total_bytes": codes.bytes_per_vector * len(codes),
                    "encoding_ms": round(1000 * (self._encoder.seconds[name] - before[name]), 3),
                    "search_ms": round(1000 * search_seconds, 3),
                    "answers": [
                        {"rank": rank, "document": row, "score": round(score, 4), "text": self._shortened(row)}
                        for rank, (row, score) in enumerate(zip(rows[0].tolist(), scores[0].tolist(), strict=True), 1)
                    ],
                }
            )
        return found

    def _shortened(self, row: int) -> str:
        text = self._texts[row]
        return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " …"


def _load_reduced(paths: Sequence[str | os.PathLike[str]]) -> dict[str, SentenceTransformer]:
    """Return reduced models by their labels."""
    labels = [_label(path) for path in paths]
    if not labels:
        raise UserError("there is no reduced model: give at least one")
    check_names(labels, paths)
    for path in map(Path, paths):
        if path.is_dir() and not (path / "modules.json").exists():
            load_head(path)  # says what is wrong if it is none
            raise UserError(f"{path} holds a head without a model: put it behind its model first (st-dimreduce attach)")
    return {label: load_model(path) for label, path in zip(labels, paths, strict=True)}


def _label(model: str | os.PathLike[str]) -> str:
    """Return the name of a model on the Hub, or of its folder."""
    return Path(model).resolve().name if Path(model).is_dir() else str(model)


def _examples(texts: Sequence[str]) -> list[str]:
    """Return a few sentences of the texts, or short texts where these are one sentence each."""
    some = texts[:_READ_FOR_EXAMPLES]
    queries = [*(query for query, _ in cloze_pairs(some)), *some]
    fit = (query for query in dict.fromkeys(queries) if len(query) <= _LONGEST_EXAMPLE)
    return list(islice(fit, _EXAMPLES))


def make_app(
    corpus: Corpus, allowed_hosts: Sequence[str] = (LOOPBACK, "localhost"), frame_ancestors: str = "'none'"
) -> Starlette:
    """Return the page as an ASGI app: ``/``, and its data at ``/about`` and ``/search``.

    ``/search?q=...&k=10&precision=int4&model=small`` needs ``q`` alone. A bad request is answered by
    ``{"error": "..."}`` with status 400; while eight searches are under way, any other by status 503.

    Args:
        corpus: The texts and models to search.
        allowed_hosts: Host names that a request may address; others get status 400, so that a web site whose name is
            made to point at 127.0.0.1 reads nothing. Defaults to those of this machine; ``["*"]`` for a public page.
        frame_ancestors: Which sites may show the page in a frame, in the words of a content security policy. Defaults
            to ``"'none'"``.
    """
    page = resources.files("st_dimreduce.apps").joinpath("search_page.html").read_text(encoding="utf-8")
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        f"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors {frame_ancestors}"
    )
    common = _HEADERS | ({"X-Frame-Options": "DENY"} if frame_ancestors == "'none'" else {})
    places = threading.BoundedSemaphore(_MOST_SEARCHES)

    def index(_: Request) -> HTMLResponse:
        return HTMLResponse(page, headers=common | {"Content-Security-Policy": policy})

    def about(_: Request) -> JSONResponse:
        return JSONResponse(corpus.about, headers=common)

    def find(request: Request) -> JSONResponse:
        given = request.query_params
        k = given.get("k", "10")
        if not re.fullmatch(r"[0-9]{1,9}", k):
            raise UserError(f"k={k[:20]!r}: choose 1 to {MOST_ANSWERS}")
        if not places.acquire(blocking=False):
            busy = {"error": f"{_MOST_SEARCHES} searches are under way: try again in a moment"}
            return JSONResponse(busy, status_code=503, headers=common | {"Retry-After": "1"})
        try:
            found = corpus.search(given.get("q", ""), int(k), given.get("precision"), given.get("model"))
        finally:
            places.release()
        return JSONResponse(found, headers=common)

    def refuse(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=400, headers=common)

    return Starlette(
        routes=[Route("/", index), Route("/about", about), Route("/search", find)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)],
        exception_handlers={UserError: refuse},
    )


def bind(port: int) -> socket.socket:
    """Return a socket that listens on a port of 127.0.0.1; 0 stands for any free port.

    Raises:
        OSError: If another program listens there, or the port may not be used.
        UserError: If there is no such port.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"port={port}: choose 0 to 65535, 0 for any that is free")
    try:
        return socket.create_server((LOOPBACK, port))
    except OSError as error:
        problem = f"port {port} cannot be used ({error.strerror})"
        raise OSError(f"{problem}: choose another, or 0 for any that is free") from error


def address(bound: socket.socket) -> str:
    """Return the URL of the page."""
    return f"http://{LOOPBACK}:{bound.getsockname()[1]}"


def make_server(app: Starlette) -> uvicorn.Server:
    """Return a server of the page, which answers 503 to a request beyond 200 connections."""
    limits: dict[str, Any] = {"limit_concurrency": _MOST_CONNECTIONS, "timeout_graceful_shutdown": 2}
    return uvicorn.Server(uvicorn.Config(app, ws="none", log_level="warning", access_log=False, **limits))


def serve_app(app: Starlette, bound: socket.socket) -> None:
    """Serve on a bound socket until Ctrl-C."""
    with bound, suppress(KeyboardInterrupt):  # the server raises it again once all connections are closed
        make_server(app).run(sockets=[bound])
