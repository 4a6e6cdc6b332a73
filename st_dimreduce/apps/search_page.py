"""A page to search with: what the full and the reduced model find, side by side."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from st_dimreduce.models.encoder import load_model
from st_dimreduce.models.heads import load_reduced
from st_dimreduce.codes.precision import Precision, quantize
from st_dimreduce.codes.search import search
from st_dimreduce.models.attach import detach_head

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the search page needs a web server: pip install 'st_dimreduce[serve]'") from error

LOOPBACK = "127.0.0.1"
MOST_ANSWERS, LONGEST_QUERY = 100, 2000
_TEXT_SHOWN = 2000  # characters of an answer that are sent
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


class Corpus:
    """Texts as a full and a reduced model see them, ready to be searched.

    The reduced model contains the full one below its head, so each text is encoded once for both.

    Args:
        path: Folder or name of the reduced model.
        texts: The texts, at least one.
        base: Name or folder of the full model; what stands below the head if None (the default). Give it for a model
            that was trained end to end, whose lower part is the base model's no more.
        batch_size: Texts encoded at a time. Defaults to 32.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).

    Raises:
        ValueError: If there is no text, or a model cannot be loaded or has no head.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        texts: Sequence[str],
        *,
        base: str | os.PathLike[str] | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> None:
        if not texts:
            raise ValueError("there is no text to search: give at least one")
        model, loaded = load_reduced(path)
        self._below, self._head = detach_head(model)
        self._size = min(model.truncate_dim or self._head.out_features, self._head.out_features)
        self._base: SentenceTransformer | None = None if base is None else load_model(base)
        shown = sys.stderr.isatty() if show_progress_bar is None else show_progress_bar
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": shown}
        below = self._below.encode_document(list(texts), **options)
        full = below if self._base is None else self._base.encode_document(list(texts), **options)
        self._full = quantize(full, Precision.FLOAT32)
        self._reduced = self._reduce(below)
        self._codes: dict[Precision, np.ndarray] = {}
        self._texts = texts
        self._lock = threading.Lock()
        self.about = {
            "full": str(base or loaded.fitted.get("base_model") or "the reduced model without its head"),
            "reduced": Path(path).name,
            "documents": len(texts),
            "precision": Precision(loaded.precision).value,
            "precisions": [precision.value for precision in Precision],
            "longest_query": LONGEST_QUERY,
        }
        self.search(texts[0])  # the first search of a process takes longer than all others

    def search(self, query: str, top_k: int = 10, precision: Precision | str | None = None) -> dict[str, Any]:
        """Search with both models, the documents of the full one stored as float32.

        Args:
            query: What to look for, 1 to 2,000 characters that are not all blank.
            top_k: How many answers, 1 to 100. Defaults to 10.
            precision: How the reduced documents are stored; what the model was fitted for if None (the default).

        Returns:
            What JSON can hold: how many answers are ``shared``, and of the ``full`` and the ``reduced`` model sizes,
            ``encoding_ms``, ``search_ms`` (the least of three searches) and ``answers``, each with the ``rank`` it has
            and the ``other_rank`` among the other's, None if it is not among these.

        Raises:
            ValueError: If an argument is out of range.
        """
        precision = Precision(self.about["precision"] if precision is None else precision)
        if not query.strip():
            raise ValueError("the query is empty: type what to look for")
        if len(query) > LONGEST_QUERY:
            raise ValueError(f"the query has {len(query):,} characters: give at most {LONGEST_QUERY:,}")
        if not 1 <= top_k <= MOST_ANSWERS:
            raise ValueError(f"k={top_k}: choose 1 to {MOST_ANSWERS}")
        with self._lock:  # a tokenizer serves one at a time, and times are to be of one search
            if precision not in self._codes:
                self._codes[precision] = quantize(self._reduced, precision)
            below, encoding = _timed(lambda: self._below.encode_query([query], show_progress_bar=False))
            reduced, head = _timed(lambda: self._reduce(below))
            full, full_encoding = below, encoding
            if (base := self._base) is not None:
                full, full_encoding = _timed(lambda: base.encode_query([query], show_progress_bar=False))
            found = [
                self._find(full, self._full, Precision.FLOAT32, top_k),
                self._find(reduced, self._codes[precision], precision, top_k),
            ]
        found[0]["encoding_ms"], found[1]["encoding_ms"] = full_encoding, encoding + head
        ranks = [{answer["document"]: answer["rank"] for answer in one["answers"]} for one in found]
        for one, others in zip(found, reversed(ranks), strict=True):
            for answer in one["answers"]:
                answer["other_rank"] = others.get(answer["document"])
        shared = len(ranks[0].keys() & ranks[1].keys())
        return {"query": query, "k": top_k, "shared": shared, "full": found[0], "reduced": found[1]}

    def _reduce(self, below: np.ndarray) -> np.ndarray:
        return self._head.reduce(below)[:, : self._size]

    def _find(self, query: np.ndarray, codes: np.ndarray, precision: Precision, top_k: int) -> dict[str, Any]:
        # The least of three: a thread's first search takes longer than all others.
        runs = [_timed(lambda: search(query, codes, precision, top_k)) for _ in range(3)]
        (scores, rows), milliseconds = min(runs, key=lambda run: run[1])
        answers = [
            {"rank": rank, "document": int(row), "score": round(float(score), 4), "text": self._shown(int(row))}
            for rank, (row, score) in enumerate(zip(rows[0], scores[0], strict=True), 1)
        ]
        dimensions = query.shape[1]
        width = precision.bytes_per_vector(dimensions)
        return {
            "dimensions": dimensions,
            "precision": precision.value,
            "bytes_per_vector": width,
            "total_bytes": width * len(codes),
            "search_ms": milliseconds,
            "answers": answers,
        }

    def _shown(self, row: int) -> str:
        text = self._texts[row]
        return text if len(text) <= _TEXT_SHOWN else text[:_TEXT_SHOWN] + " …"


def make_app(corpus: Corpus, allowed_hosts: Sequence[str] = (LOOPBACK, "localhost")) -> Starlette:
    """Return the page at ``/`` and what it asks, ``/about`` and ``/search?q=...&k=10&precision=int4``, as an ASGI app.

    What ``/search`` refuses is ``{"error": "..."}`` with status 400.

    Args:
        corpus: What is searched.
        allowed_hosts: The names a request may address it by; others get status 400, so that a web site whose name is
            made to point at 127.0.0.1 reads nothing. Defaults to those of this machine; ``["*"]`` where it is public.
    """
    page = resources.files("st_dimreduce").joinpath("search_page.html").read_text(encoding="utf-8")
    headers = _HEADERS | {"Content-Security-Policy": _policy(page)}

    def show(_: Request) -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    def about(_: Request) -> JSONResponse:
        return JSONResponse(corpus.about, headers=_HEADERS)

    def find(request: Request) -> JSONResponse:
        given = request.query_params
        try:
            k = given.get("k", "10")
            if not re.fullmatch(r"[0-9]{1,9}", k):
                raise ValueError(f"k={k[:20]!r}: choose 1 to {MOST_ANSWERS}")
            found = corpus.search(given.get("q", ""), int(k), given.get("precision"))
        except ValueError as error:
            return JSONResponse({"error": str(error)}, status_code=400, headers=_HEADERS)
        return JSONResponse(found, headers=_HEADERS)

    routes = [Route("/", show), Route("/about", about), Route("/search", find)]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)
    return Starlette(routes=routes, middleware=[hosts])


def bind(port: int) -> socket.socket:
    """Return a socket that is bound to a port of 127.0.0.1, 0 for any that is free.

    Raises:
        OSError: If another program listens there, or it may not be used; says what to do.
        ValueError: If there is no such port.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port={port}: choose 0 to 65535, 0 for any that is free")
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
    """Return what to type into a browser."""
    return f"http://{LOOPBACK}:{bound.getsockname()[1]}"


def run(app: Starlette, bound: socket.socket) -> None:
    """Serve on a bound socket until Ctrl-C."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2))
    try:
        server.run(sockets=[bound])
    except KeyboardInterrupt:  # raised again by the server when it has closed what was open: the way to end it
        pass
    finally:
        bound.close()


def _timed(call: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, round(1000 * (time.perf_counter() - start), 3)


def _policy(page: str) -> str:
    """Let the page run its own script and nothing else, whatever a text holds."""
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
