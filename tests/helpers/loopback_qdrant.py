"""Qdrant's REST interface on this machine, before its client's local mode: what a server is asked, and answers."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from qdrant_client import QdrantClient, models

KEY = "s3cret"


class LoopbackQdrant:
    """A server with collections in memory, which answers those who send its key."""

    def __init__(self):
        self.client, self.lock = QdrantClient(":memory:"), threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"qdrant": self}))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, method, path, body):
        """Return what the local mode returns to the same question."""
        client = self.client
        _, _, name, *asked = path.split("/")
        options = {"with_payload": body.get("with_payload"), "with_vectors": body.get("with_vector") or False}

        chosen = models.Filter(**body["filter"]) if body.get("filter") else None

        def scroll():
            points, offset = client.scroll(name, chosen, limit=body["limit"], offset=body.get("offset"), **options)
            return {"points": _plain(points), "next_page_offset": offset}

        def query():
            asked = body["query"]
            query = models.SampleQuery(**asked) if "sample" in asked else asked["nearest"]
            return client.query_points(name, query, query_filter=chosen, limit=body["limit"], **options)

        answers = {
            "GET": lambda: client.get_collection(name),
            "GET exists": lambda: {"exists": client.collection_exists(name)},
            "PUT": lambda: client.create_collection(name, models.VectorParams(**body["vectors"])),
            "POST points": lambda: client.retrieve(name, body["ids"], **options),
            "PUT points": lambda: client.upsert(name, models.Batch(**body["batch"])),
            "POST points/count": lambda: client.count(name, count_filter=chosen),
            "POST points/scroll": scroll,
            "POST points/query": query,
        }
        return answers[" ".join([method, "/".join(asked)]).strip()]()


class _Handler(BaseHTTPRequestHandler):
    qdrant: LoopbackQdrant

    def respond(self):
        path, length = self.path.partition("?")[0], int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        if path in ("", "/"):
            self.send(200, {"title": "qdrant - vector search engine", "version": "1.20.0", "commit": ""})
        elif self.headers.get("api-key") != KEY:
            self.send(401, {"status": {"error": f"Must provide an API key, not {self.headers.get('api-key')}"}})
        else:
            with self.qdrant.lock:
                result = self.qdrant.answer(self.command, path, body)
            self.send(200, {"result": _plain(result), "status": "ok", "time": 0.0})

    def send(self, status, content):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = respond  # noqa: N815

    def log_message(self, *_):
        pass


def _plain(result):
    if isinstance(result, list):
        return [_plain(each) for each in result]
    return result.model_dump(mode="json") if hasattr(result, "model_dump") else result
