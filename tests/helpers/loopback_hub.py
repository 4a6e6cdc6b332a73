"""A Hugging Face Hub on 127.0.0.1: as much of the protocol as the real client speaks to publish and to load a model.

Repositories with branches and commits, tokens that may read or write, large files through the LFS batch API, a
commit that happens in full or not at all, downloads by name and revision, and checks of a card's metadata. Everything
is kept in memory. What a client asked that this does not know stands in ``unknown``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

from tests.helpers.hub_protocol import WRITER, Handler, Repo


class LoopbackHub:
    """Serves from construction until :meth:`close`.

    ``on_request(method, path)`` is called before each request is answered and ``on_upload()`` when half of a large file
    is there; where they raise ``ConnectionError``, the connection is cut.
    """

    def __init__(self):
        self.repos, self.objects, self.requests, self.unknown = {}, {}, [], []
        self.on_request = self.on_upload = None
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def hold(self, repo_id, folder):
        """Have a repository with the files of a folder."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*.*")}
        self.repos[repo_id] = Repo(private=False)
        self.repos[repo_id].commit("main", files)

    def files(self, repo_id, revision="main"):
        repo = self.repos[repo_id]
        return repo.commits[repo.branches.get(revision, revision)]

    def environment(self, home, token=WRITER, **more):
        """What a client needs to take this for the Hub; a fresh ``home`` is a fresh cache."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "COV_"))}
        said = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
        return kept | said | ({"HF_TOKEN": token} if token else {}) | {"PYTHONPATH": path} | more

    def run(self, home, code, *arguments, token=WRITER, timeout=300, **more):
        """Run Python code in a process whose Hub this is; returns what it printed, fails with its errors."""
        command = [sys.executable, "-c", code, *map(str, arguments)]
        environment = self.environment(home, token, **more)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    def run_json(self, home, code, *arguments, **more):
        """As :meth:`run`; returns what the last line holds as JSON."""
        return json.loads(self.run(home, code, *arguments, **more).splitlines()[-1])
