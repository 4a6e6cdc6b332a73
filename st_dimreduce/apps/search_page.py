"""Web page that searches texts with a full model and a reduced one, which its reader chooses, side by side."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.util
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from sentence_transformers import SentenceTransformer

from st_dimreduce.codes.codes import Codes
from st_dimreduce.codes.precision import quantize
from st_dimreduce.codes.search import search
from st_dimreduce.enums import Precision
from st_dimreduce.errors import MissingExtraError, UserError
from st_dimreduce.fitting.cloze import cloze_pairs
from st_dimreduce.models.attach import detach_head
from st_dimreduce.models.cache import Cache
from st_dimreduce.models.encoding import CHUNK, SharedEncoder
from st_dimreduce.models.load import check_names, load_head, load_model
from st_dimreduce.progress import progress_bar
from st_dimreduce.untrusted import short

try:
    import uvicorn
    import uvicorn.protocols.http.auto
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route
    from starlette.types import ASGIApp, Receive, Scope, Send
except ModuleNotFoundError as error:
    raise MissingExtraError("the search page needs a web server: pip install 'st_dimreduce[serve]'") from error

LOOPBACK = "127.0.0.1"
FEWEST_INDEXED = 50_000  # texts, from which on an index is faster than exact search
MOST_ANSWERS, LONGEST_QUERY = 100, 2000
_LONGEST_TEXT = 2000  # characters of an answer that are sent
_EXAMPLES, _LONGEST_EXAMPLE = 3, 70  # queries to begin with, and their characters
_READ_FOR_EXAMPLES = 1000  # texts
_MOST_WAITING = 8  # searches, one of which runs: a long one takes a tenth of a second of a small model
_MOST_CONNECTIONS = 200
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}

Result = TypeVar("Result")
Finder = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]  # of queries and a number of results


class Corpus:
    """Texts encoded by a full model and reduced ones, ready to be searched.

    Models with the same body encode each text once between them; mostly, the full model is that body. A model whose
    body was trained encodes texts and queries itself. From 50,000 texts on a reduced model is searched through an
    index, where FAISS is installed; the full one always exactly.

    Args:
        path: Folder or name of the reduced model, or a list of several.
        texts: The texts, at least one.
        base: Name or folder of the full model. Defaults to None: the body of the first reduced model. Give it where
            that was trained end to end, and is no longer the base model.
        examples: Queries that the page offers. Defaults to None: up to three sentences of the texts.
        batch_size: Texts encoded at a time. Defaults to 32.
        cache: Folder to keep embeddings in, and to take those from that are there. Defaults to None.

    Raises:
        ValueError: If there is no text, if two reduced models have one name, or if a model cannot be loaded or has no
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
        self._models = _load_all([path] if isinstance(path, (str, os.PathLike)) else path, len(texts))
        first = next(iter(self._models.values()))
        if first.record.folded and base is None:
            raise UserError("the head is folded into the base model's last Dense: give the base model too (--base)")
        # The full model has no name of its own, which any reduced model may have.
        encoding = {} if base is None else {"": load_model(base)}
        encoding |= {label: model.body for label, model in self._models.items()}
        self._full_name = next(iter(encoding))
        self._encoder = SharedEncoder(encoding, batch_size, None if cache is None else Cache(cache))
        self._encoder.share_modules()
        self._texts = texts
        self._full = self._encode_texts()
        # A tokenizer serves one thread at a time, a time is that of one search, and a thread's first takes longer.
        self._thread = ThreadPoolExecutor(1)
        self.about = {
            "full": _label(base or first.record.base_model or f"{next(iter(self._models))} without its head"),
            "models": [
                {"label": label, "precision": model.record.precision.value} for label, model in self._models.items()
            ],
            "documents": len(texts),
            "precisions": [precision.value for precision in Precision],
            "longest_query": LONGEST_QUERY,
            "examples": list(_examples(texts) if examples is None else examples),
        }
        self.search("cat")  # the first search of a process takes longer than all others

    def search(
        self, query: str, top_k: int = 10, precision: Precision | str | None = None, model: str | None = None
    ) -> dict[str, Any]:
        """Search with the full and a reduced model, the documents of the full one stored as float32.

        Args:
            query: The query, 1 to 2,000 characters that are not all blank.
            top_k: Number of answers, 1 to 100. Defaults to 10.
            precision: Precision of the reduced documents; what the model was fitted for if None (the default).
            model: Which reduced model: the name of its folder, or that on the Hub. Defaults to None: the first.

        Returns:
            A dict that JSON can hold: the reduced ``model``; how many answers are ``shared``; and for the ``full`` and
            the ``reduced`` model the sizes, ``searched`` (``"every vector"`` or ``"through an index"``),
            ``encoding_ms``, ``search_ms`` and ``answers``, each with its ``rank`` and its ``other_rank`` in the other
            model, None if it is not among that one's answers.

        Raises:
            ValueError: If there is no such model, or an argument is out of range.
        """
        label = next(iter(self._models)) if model is None else model
        if label not in self._models:
            raise UserError(f"unknown model {short(label)}: choose from {', '.join(self._models)}")
        precision = self._models[label].record.precision if precision is None else Precision(precision)
        if not query.strip():
            raise UserError("the query is empty: type what to look for")
        if len(query) > LONGEST_QUERY:
            raise UserError(f"the query has {len(query):,} characters: give at most {LONGEST_QUERY:,}")
        if not 1 <= top_k <= MOST_ANSWERS:
            raise UserError(f"k={top_k}: choose 1 to {MOST_ANSWERS}")
        by_full, by_reduced = self._thread.submit(self._search, query, top_k, precision, label).result()
        full_ranks, reduced_ranks = _ranks(by_full), _ranks(by_reduced)
        for found, other_ranks in ((by_full, reduced_ranks), (by_reduced, full_ranks)):
            for answer in found["answers"]:
                answer["other_rank"] = other_ranks.get(answer["document"])
        shared = len(full_ranks.keys() & reduced_ranks.keys())
        return {"query": query, "k": top_k, "model": label, "shared": shared, "full": by_full, "reduced": by_reduced}

    def _encode_texts(self) -> np.ndarray:
        """Give each reduced model its vectors of the texts, and return those of the full model."""
        full = []
        with progress_bar("Encoding", "texts", total=len(self._texts)) as bar:
            for start in range(0, len(self._texts), CHUNK):  # the embeddings of all models at once may be too many
                chunk = self._texts[start : start + CHUNK]
                embeddings = self._encoder.encode(chunk, "document", None)
                full.append(quantize(embeddings[self._full_name], Precision.FLOAT32))
                for label, model in self._models.items():
                    model.rows[start : start + CHUNK] = model.reduce(embeddings[label])
                bar.update(len(chunk))
        return np.concatenate(full)

    def _search(
        self, query: str, top_k: int, precision: Precision, label: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        encoder, model = self._encoder.of({self._full_name, label}), self._models[label]
        embeddings = encoder.encode([query], "query", None)
        full_ms, encoding_ms = (round(1000 * encoder.seconds[name], 3) for name in (self._full_name, label))
        reduced, reducing_ms = _timed(lambda: model.reduce(embeddings[label]))
        if precision not in model.finders:
            model.finders[precision] = model.finder(precision)
            model.finders[precision](reduced, top_k)  # which takes longer than all others
        exact = partial(_exact, self._full, Precision.FLOAT32)
        by_full = self._find(embeddings[self._full_name], exact, Precision.FLOAT32, top_k)
        by_reduced = self._find(reduced, model.finders[precision], precision, top_k)
        by_full["encoding_ms"], by_reduced["encoding_ms"] = full_ms, round(encoding_ms + reducing_ms, 3)
        return by_full, by_reduced

    def _find(self, query: np.ndarray, find: Finder, precision: Precision, top_k: int) -> dict[str, Any]:
        (scores, rows), milliseconds = _timed(lambda: find(query, top_k))
        answers = [
            {"rank": rank, "document": int(row), "score": round(float(score), 4), "text": self._shortened(int(row))}
            for rank, (row, score) in enumerate(zip(rows[0], scores[0], strict=True), 1)
            if row >= 0
        ]
        dimensions = query.shape[1]
        width = precision.bytes_per_vector(dimensions)
        return {
            "dimensions": dimensions,
            "precision": precision.value,
            "bytes_per_vector": width,
            "total_bytes": width * len(self._texts),
            "searched": "every vector" if isinstance(find, partial) else "through an index",
            "search_ms": milliseconds,
            "answers": answers,
        }

    def _shortened(self, row: int) -> str:
        text = self._texts[row]
        return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " …"


class _Reduced:
    """A reduced model and its vectors of the texts.

    Attributes:
        body: The model below its head.
        record: The head's record.
        rows: The vectors, float32 of shape (n, k); the caller fills them in.
        finders: What searches them, by the precision they are stored in; the caller adds those that are asked for.
    """

    def __init__(self, path: str | os.PathLike[str], count: int) -> None:
        model = _load_reduced(path)
        self.body, head = detach_head(model)
        self.record, size = head.record, min(model.truncate_dim or head.out_features, head.out_features)
        bias = None if head.bias is None else head.bias[:size]
        self._head = replace(head, weight=head.weight[:size], bias=bias)
        self.rows = np.empty((count, size), np.float32)
        self.finders: dict[Precision, Finder] = {}

    def reduce(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the reduced vectors of embeddings by the body."""
        return self._head.forward(embeddings)

    def finder(self, precision: Precision) -> Finder:
        """Return what searches the vectors: an index where there are many and FAISS is there."""
        codes = quantize(self.rows, precision)
        if len(codes) < FEWEST_INDEXED or importlib.util.find_spec("faiss") is None:
            return partial(_exact, codes, precision)
        from st_dimreduce.vectors.index import Index  # noqa: PLC0415, optional

        return Index.build(Codes(codes, precision, self.rows.shape[1])).search


def _load_all(paths: Sequence[str | os.PathLike[str]], count: int) -> dict[str, _Reduced]:
    """Return reduced models by what they are called, with room for the vectors of so many texts."""
    labels = [_label(path) for path in paths]
    if not labels:
        raise UserError("there is no reduced model: give at least one")
    check_names(labels, paths)
    return {label: _Reduced(path, count) for label, path in zip(labels, paths, strict=True)}


def _label(model: str | os.PathLike[str]) -> str:
    """Return what a model is called: its name on the Hub, or that of its folder."""
    return Path(model).resolve().name if Path(model).is_dir() else str(model)


def _examples(texts: Sequence[str]) -> list[str]:
    """Return a few sentences of the texts, or short texts where these are one sentence each."""
    some = texts[:_READ_FOR_EXAMPLES]
    queries = [*(query for query, _ in cloze_pairs(some)), *some]
    fit = (query for query in dict.fromkeys(queries) if len(query) <= _LONGEST_EXAMPLE)
    return list(islice(fit, _EXAMPLES))


def _load_reduced(path: str | os.PathLike[str]) -> SentenceTransformer:
    folder = Path(path)
    if folder.is_dir() and not (folder / "modules.json").exists():
        load_head(folder)  # which says what is wrong if it is none
        raise UserError(
            f"{path} holds a head without a model: put it behind its own with attach_head (st-dimreduce attach)"
        )
    return load_model(path)


def _exact(codes: np.ndarray, precision: Precision, query: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    return search(query, codes, precision, top_k)


def _ranks(found: dict[str, Any]) -> dict[int, int]:
    return {answer["document"]: answer["rank"] for answer in found["answers"]}


def make_app(
    corpus: Corpus, allowed_hosts: Sequence[str] = (LOOPBACK, "localhost"), frame_ancestors: str = "'none'"
) -> Starlette:
    """Return the page as an ASGI app: ``/``, and its data at ``/about`` and ``/search``.

    ``/search?q=...&k=10&precision=int4&model=small`` needs ``q`` alone. What it refuses is answered by
    ``{"error": "..."}`` with status 400; with status 503 while eight searches are under way, so that nobody waits for
    those of many others.

    Args:
        corpus: The texts and models to search.
        allowed_hosts: Host names that a request may address; others get status 400, so that a web site whose name is
            made to point at 127.0.0.1 reads nothing. Defaults to those of this machine; ``["*"]`` for a public page.
        frame_ancestors: Which sites may show the page in a frame, in the words of a content security policy. Defaults
            to ``"'none'"``.
    """
    page = resources.files("st_dimreduce.apps").joinpath("search_page.html").read_text(encoding="utf-8")
    common = dict(_HEADERS) | ({"X-Frame-Options": "DENY"} if frame_ancestors == "'none'" else {})
    headers = common | {"Content-Security-Policy": f"{_policy(page)}; frame-ancestors {frame_ancestors}"}
    places = threading.BoundedSemaphore(_MOST_WAITING)

    def index(_: Request) -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    def about(_: Request) -> JSONResponse:
        return JSONResponse(corpus.about, headers=common)

    def find(request: Request) -> JSONResponse:
        parameters = request.query_params
        if not places.acquire(blocking=False):
            busy = {"error": f"{_MOST_WAITING} searches are under way: try again in a moment"}
            return JSONResponse(busy, status_code=503, headers=common | {"Retry-After": "1"})
        try:
            k = parameters.get("k", "10")
            if not re.fullmatch(r"[0-9]{1,9}", k):
                raise UserError(f"k={k[:20]!r}: choose 1 to {MOST_ANSWERS}")
            found = corpus.search(parameters.get("q", ""), int(k), parameters.get("precision"), parameters.get("model"))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, status_code=400, headers=common)
        finally:
            places.release()
        return JSONResponse(found, headers=common)

    routes = [Route("/", index), Route("/about", about), Route("/search", find)]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)
    return Starlette(routes=routes, middleware=[hosts])


def bind(port: int) -> socket.socket:
    """Return a socket that is bound to a port of 127.0.0.1; 0 stands for any free port.

    Raises:
        OSError: If another program listens there, or the port may not be used.
        ValueError: If there is no such port.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"port={port}: choose 0 to 65535, 0 for any that is free")
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a page that has just ended does not block the next
    try:
        bound.bind((LOOPBACK, port))
        bound.listen()
    except OSError as error:
        bound.close()
        reason = (error.strerror or str(error)).lower()
        raise OSError(f"port {port} cannot be used ({reason}): choose another, or 0 for any that is free") from error
    return bound


def address(bound: socket.socket) -> str:
    """Return the URL of the page."""
    return f"http://{LOOPBACK}:{bound.getsockname()[1]}"


class Connections:
    """The open connections of a server, each of which ends if it does not send its request or take its answer in time.

    Uvicorn alone would keep one that sends nothing for ever.

    Args:
        app: The app to serve.
        request_seconds: Seconds from the connection to a complete request, and from an answer, which must be taken
            within them, to the next. Defaults to 10.
        answer_seconds: Seconds from a request to its answer. Defaults to 60.
    """

    def __init__(self, app: ASGIApp, request_seconds: float = 10, answer_seconds: float = 60) -> None:
        self._app, self._seconds = app, (request_seconds, answer_seconds)
        self._open: dict[Any, tuple[asyncio.Transport, asyncio.TimerHandle]] = {}  # by the client's address

    def __len__(self) -> int:
        return len(self._open)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        client = scope.get("client")
        self._expect(client, self._seconds[1])
        try:
            await self._app(scope, receive, send)
        finally:
            self._expect(client, self._seconds[0])

    def opened(self, transport: asyncio.Transport) -> None:
        """Take note of a connection; one too many is closed."""
        if len(self._open) >= _MOST_CONNECTIONS:
            transport.abort()
            return
        self._open[transport.get_extra_info("peername")] = transport, self._timer(transport, self._seconds[0])

    def closed(self, transport: asyncio.Transport) -> None:
        """Forget a connection."""
        client = transport.get_extra_info("peername")
        if client in self._open and self._open[client][0] is transport:
            self._open.pop(client)[1].cancel()

    def _expect(self, client: Any, seconds: float) -> None:
        if client in self._open:
            transport, timer = self._open[client]
            timer.cancel()
            self._open[client] = transport, self._timer(transport, seconds)

    def _timer(self, transport: asyncio.Transport, seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, transport.abort)


def make_server(connections: Connections) -> uvicorn.Server:
    """Return a server of these connections."""

    class Protocol(uvicorn.protocols.http.auto.AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._connection = transport
            connections.opened(transport)

        def connection_lost(self, error: Exception | None) -> None:
            connections.closed(self._connection)
            super().connection_lost(error)

    # Without the headers of a proxy: they would change the address that a connection is known by.
    options: dict[str, Any] = {"ws": "none", "proxy_headers": False, "log_level": "warning", "access_log": False}
    return uvicorn.Server(uvicorn.Config(connections, http=Protocol, timeout_graceful_shutdown=2, **options))


def run(app: Starlette, bound: socket.socket) -> None:
    """Serve on a bound socket until Ctrl-C."""
    server = make_server(Connections(app))
    try:
        server.run(sockets=[bound])
    except KeyboardInterrupt:  # the way to end it: the server raises it again once all connections are closed
        pass
    finally:
        bound.close()


def _timed(call: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result of a call, and the milliseconds that it took."""
    start = time.perf_counter()
    result = call()
    return result, round(1000 * (time.perf_counter() - start), 3)


def _policy(page: str) -> str:
    """Return a content security policy that lets the page run its own script and nothing else."""
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
