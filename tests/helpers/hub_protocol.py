"""What the Hub answers to each request of the real client: the protocol behind the Hub on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from tests.helpers.hub_card_rules import card_errors

WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"
TOKENS = {WRITER: ("user", "write"), READER: ("user", "read"), STRANGER: ("stranger", "write")}
LARGE = (".safetensors", ".bin", ".onnx", ".png")  # what the Hub's .gitattributes sends to LFS
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass
class Repo:
    """Branches point to commits; a commit is the name of each file to its content."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch, files):
        oid = hashlib.sha1(secrets.token_bytes(20)).hexdigest()  # noqa: S324, as git names a commit
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid


class RefusedError(Exception):
    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.code = status, code


NAME = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", rf"/api/models/{NAME}(/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", rf"/api/models/{NAME}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", "tree"),
    ("POST", rf"/api/models/{NAME}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/models/{NAME}/branch/(?P<branch>[^/]+)", "branch"),
    ("POST", rf"/api/models/{NAME}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(?P<oid>\w{64})", "upload"),
    ("POST", r"/lfs/(?P<oid>\w{64})/verify", "verify"),
    ("GET", r"/lfs/(?P<oid>\w{64})", "download"),
    ("HEAD", rf"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ("GET", rf"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


def blob_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324, as git names a file


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = None  # set where the server is made

    def log_message(self, *_):
        pass

    def answer(self):
        path = urlsplit(self.path).path
        self.query = parse_qs(urlsplit(self.path).query)
        try:
            self.hub.requests.append((self.command, path))
            if self.hub.on_request:
                self.hub.on_request(self.command, path)
            for method, pattern, name in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and method == self.command:
                    getattr(self, name)(**{key: unquote(part) for key, part in found.groupdict().items() if part})
                    return
            self.hub.unknown.append((self.command, path))
            self.body()
            raise RefusedError(404, "not found")
        except RefusedError as refused:
            headers = {"X-Error-Message": str(refused)} | ({"X-Error-Code": refused.code} if refused.code else {})
            self.reply({"error": str(refused)}, refused.status, headers)
        except ConnectionError:
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_HEAD = answer  # noqa: N815, as http.server calls them

    def body(self, half_way=None):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
                if half_way and len(parts) == 1:
                    half_way()
            self.rfile.readline()
            return b"".join(parts)
        size = int(self.headers.get("Content-Length", 0))
        first = self.rfile.read(size // 2)
        if half_way:
            half_way()
        whole = first + self.rfile.read(size - size // 2)
        if len(whole) < size:
            raise ConnectionError("the client went away")
        return whole

    def json(self):
        return json.loads(self.body())

    def reply(self, content, status=200, headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def who(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return TOKENS.get(token, (None, None))

    def writer(self, owner):
        user, role = self.who()
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        if user != owner or role != "write":
            raise RefusedError(403, f"Forbidden: you must use a write token to upload to {owner}")

    def repository(self, repo):
        found, (user, _) = self.hub.repos.get(repo), self.who()
        if found is None or (found.private and user != repo.split("/")[0]):
            raise RefusedError(404 if user else 401, "Repository not found", "RepoNotFound")
        return found

    def at(self, repo, revision):
        """The repository and the commit that a branch or a hash names."""
        found = self.repository(repo)
        commit = found.branches.get(revision, revision)
        if commit not in found.commits:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found, commit

    def whoami(self):
        user, role = self.who()
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        self.reply({"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"role": role}}})

    def create(self):
        asked = self.json()
        owner = asked.get("organization") or self.who()[0]
        self.writer(owner)
        repo_id = f"{owner}/{asked['name']}"
        with self.hub.lock:
            url = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id}
            if repo_id in self.hub.repos:
                self.reply({"error": "You already created this model repo", **url}, 409)
                return
            repo = self.hub.repos[repo_id] = Repo(asked.get("visibility") == "private" or asked.get("private") is True)
            repo.commit("main", {".gitattributes": ATTRIBUTES})
        self.reply(url)

    def validate(self):
        errors, warnings = card_errors(self.json()["content"])
        listed = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
        self.reply(listed, 400 if errors else 200)

    def info(self, repo, revision="main"):
        found, commit = self.at(repo, revision)
        names = [{"rfilename": name} for name in sorted(found.commits[commit])]
        said = {"_id": "0", "id": repo, "modelId": repo, "sha": commit, "private": found.private, "siblings": names}
        self.reply(said | {"tags": ["sentence-transformers"], "downloads": 0, "likes": 0})

    def tree(self, repo, revision, folder=""):
        found, commit = self.at(repo, revision)
        inside = {name: content for name, content in found.commits[commit].items() if name.startswith(folder)}
        if folder and not inside:
            raise RefusedError(404, f"{folder} does not exist", "EntryNotFound")
        listed = []
        for name, content in inside.items():
            entry = {"type": "file", "path": name, "oid": blob_id(content), "size": len(content)}
            if name.endswith(LARGE):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            listed.append(entry)
        self.reply(listed)

    def preupload(self, repo, revision):
        found, commit = self.at(repo, revision)
        self.writer(repo.split("/")[0])
        listed = []
        for file in self.json()["files"]:
            large, there = file["path"].endswith(LARGE), found.commits[commit].get(file["path"])
            oid = None if there is None else hashlib.sha256(there).hexdigest() if large else blob_id(there)
            mode = "lfs" if large else "regular"
            listed.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.reply({"files": listed})

    def branch(self, repo, branch):
        found, start = self.repository(repo), self.json().get("startingPoint", "main")
        self.writer(repo.split("/")[0])
        with self.hub.lock:
            if branch in found.branches:
                raise RefusedError(409, f"Reference already exists: refs/heads/{branch}")
            found.branches[branch] = found.branches.get(start, start)
        self.reply({})

    def batch(self, repo):
        self.repository(repo)
        self.writer(repo.split("/")[0])
        listed = []
        for asked in self.json()["objects"]:
            where = f"{self.hub.url}/lfs/{asked['oid']}"
            actions = {"upload": {"href": f"{where}?signed=1"}, "verify": {"href": f"{where}/verify"}}
            listed.append(asked | ({} if asked["oid"] in self.hub.objects else {"actions": actions}))
        self.reply({"transfer": "basic", "objects": listed})

    def upload(self, oid):
        if self.query.get("signed") != ["1"]:
            raise RefusedError(403, "not signed")
        content = self.body(half_way=self.hub.on_upload)
        if hashlib.sha256(content).hexdigest() != oid:
            raise RefusedError(400, "the content has another hash")
        self.hub.objects[oid] = content
        self.reply({})

    def verify(self, oid):
        asked = self.json()
        if len(self.hub.objects.get(oid, b"")) != asked["size"]:
            raise RefusedError(422, "size does not match")
        self.reply({})

    def commit(self, repo, revision):
        found, _ = self.at(repo, revision)
        self.writer(repo.split("/")[0])
        lines = [json.loads(line) for line in self.body().splitlines()]
        with self.hub.lock:
            if revision not in found.branches:
                raise RefusedError(400, f"{revision} is no branch")
            parent = lines[0]["value"].get("parentCommit")
            if parent and parent != found.branches[revision]:
                raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(found.commits[found.branches[revision]])
            for line in lines[1:]:
                path = line["value"]["path"]
                if line["key"] == "deletedFile":
                    if path not in files:
                        raise RefusedError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                    del files[path]
                elif line["key"] == "file":
                    files[path] = base64.b64decode(line["value"]["content"])
                elif line["value"]["oid"] in self.hub.objects:
                    files[path] = self.hub.objects[line["value"]["oid"]]
                else:
                    raise RefusedError(400, f"LFS pointer to a file that was not uploaded: {path}")
            oid = found.commit(revision, files)
        url = f"{self.hub.url}/{repo}/commit/{oid}"
        self.reply({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def resolve(self, repo, revision, path):
        found, commit = self.at(repo, revision)
        content = found.commits[commit].get(path)
        if content is None:
            raise RefusedError(404, f"{path} does not exist", "EntryNotFound")
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not path.endswith(LARGE):
            self.reply(content, 200, headers | {"ETag": f'"{blob_id(content)}"'})
            return
        oid = hashlib.sha256(content).hexdigest()
        self.hub.objects[oid] = content
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{oid}"', "ETag": f'"{oid}"'}
        elsewhere = self.hub.url.replace("127.0.0.1", "localhost")  # another host, as the Hub's storage is
        self.reply(b"", 302, headers | linked | {"Location": f"{elsewhere}/lfs/{oid}?signed=1"})

    def download(self, oid):
        if self.headers.get("Authorization"):
            self.hub.unknown.append(("GET with a token", self.path))
        content = self.hub.objects[oid]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            self.reply(content, 200, {"ETag": f'"{oid}"'})
            return
        start, end = int(asked[1]), int(asked[2] or len(content) - 1)
        said = f"bytes {start}-{end}/{len(content)}"
        self.reply(content[start : end + 1], 206, {"ETag": f'"{oid}"', "Content-Range": said})
