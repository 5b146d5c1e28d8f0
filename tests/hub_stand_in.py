"""The part of the hub's API that publishing and downloading a model call, in memory, on 127.0.0.1.

with HubStandIn() as hub: HfApi(endpoint=hub.url) …  Whatever is not stood in for is answered by 501 and kept in
`unknown`, so that a test which trusts this one notices. Clients with HF_HUB_DISABLE_XET=1 send large files as LFS; of
the others hf_xet takes a folder for its storage, which this cannot read: `in_xet` says what was sent by its hash.
"""

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN, OWNER = "hf_stand_in", "me"
LARGE = re.compile(r".*\.(safetensors|pt|png)")


def git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Repo:
    """Commits are dicts of path → (is large, content); branches name them."""

    def __init__(self, private):
        self.private = private
        self.commits, self.titles, self.parents, self.branches = {}, {}, {}, {}
        self.add("main", {".gitattributes": (False, b"*.safetensors filter=lfs\n")}, "initial commit")

    def add(self, branch, files, title):
        parent = self.branches.get(branch)
        sha = hashlib.sha1(f"{branch}{title}{len(self.commits)}".encode()).hexdigest()
        self.commits[sha], self.titles[sha], self.parents[sha], self.branches[branch] = files, title, parent, sha
        return sha

    def at(self, revision):
        return revision if revision in self.commits else self.branches.get(revision)

    def files(self, revision="main"):
        return {path: content for path, (_, content) in self.commits[self.at(revision)].items()}

    def history(self, revision="main"):
        """Titles, newest first."""
        sha, found = self.at(revision), []
        while sha:
            found.append((sha, self.titles[sha]))
            sha = self.parents[sha]
        return found


class HubStandIn:
    """A hub with one user.

    Attributes:
        repos: by name.
        uploads: hashes of the large files that were sent, each time that they were.
        asked: method and path of every request.
        xet: an empty folder for hf_xet; in_xet: of the files that are sent so, hash → content.
        fails: may be set to a function of (method, path) that says how a request fails: a status, "drop", or None.
    """

    def __init__(self):
        self.repos, self.blobs, self.uploads, self.asked, self.unknown = {}, {}, [], [], []
        self.xet, self.in_xet = None, {}
        self.fails = lambda method, path: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    # --- one method for each thing that is asked; `ask` has the body, the query and headers

    def whoami(self, ask):
        return {"type": "user", "name": OWNER, "auth": {"accessToken": {"role": "write"}}}

    def create(self, ask):
        name = f"{ask.json.get('organization') or OWNER}/{ask.json['name']}"
        if name in self.repos:
            raise Refused(409, "You already created this model repo", url=f"{self.url}/{name}")
        if ask.json.get("organization") not in (None, OWNER):
            raise Refused(403, "You don't have the rights to create a model under this namespace")
        self.repos[name] = Repo(ask.json.get("visibility") == "private")
        return {"url": f"{self.url}/{name}", "name": name, "id": name}

    def info(self, ask, name, revision="main"):
        repo = self.repo(name)
        sha = self.sha(repo, revision)
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        return {"id": name, "modelId": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []}

    def refs(self, ask, name):
        branches = self.repo(name).branches
        found = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": sha} for b, sha in branches.items()]
        return {"branches": found, "converts": [], "tags": []}

    def commits(self, ask, name, revision):
        return [
            {"id": sha, "title": title, "message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
            for sha, title in self.repo(name).history(revision)
        ]

    def tree(self, ask, name, revision):
        repo = self.repo(name)
        found = []
        for path, (is_large, content) in repo.commits[self.sha(repo, revision)].items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
            if is_large:
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            found.append(entry)
        return found

    def branch(self, ask, name, branch):
        repo = self.repo(name)
        if branch in repo.branches:
            raise Refused(409, "Reference already exists")
        repo.branches[branch] = self.sha(repo, ask.json.get("startingPoint", "main"))
        return {}

    def validate_yaml(self, ask):
        return {"errors": [], "warnings": []}

    def preupload(self, ask, name, revision):
        repo = self.repo(name)
        there = repo.commits[self.sha(repo, revision)]
        answer = []
        for file in ask.json["files"]:
            is_large = LARGE.fullmatch(file["path"]) is not None
            one = {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            if file["path"] in there:
                content = there[file["path"]][1]
                one["oid"] = hashlib.sha256(content).hexdigest() if is_large else git_hash(content)
            answer.append(one)
        return {"files": answer}

    def xet_token(self, ask, name, revision):
        return {"casUrl": f"local://{self.xet}", "exp": int(time.time()) + 3600, "accessToken": "of the stand-in"}

    def batch(self, ask, name):
        self.repo(name)
        objects = []
        for one in ask.json["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}}
            objects.append({**one, **({} if one["oid"] in self.blobs else upload)})
        return {"transfer": "basic", "objects": objects}

    def put(self, ask, oid):
        if hashlib.sha256(ask.body).hexdigest() != oid:
            raise Refused(400, "content does not match the oid")
        self.uploads.append(oid)
        self.blobs[oid] = ask.body
        return {}

    def commit(self, ask, name, revision):
        repo = self.repo(name)
        if revision not in repo.branches:
            raise Refused(404, "Revision not found", "RevisionNotFound")
        header, *operations = (json.loads(line) for line in ask.body.splitlines())
        files = dict(repo.commits[repo.branches[revision]])
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "deletedFile":
                del files[value["path"]]
            elif operation["key"] == "file":
                files[value["path"]] = (False, base64.b64decode(value["content"]))
            elif operation["key"] == "lfsFile":
                files[value["path"]] = (True, (self.blobs | self.in_xet)[value["oid"]])
            else:
                raise Refused(501, f"operation {operation['key']}")
        sha = repo.add(revision, files, header["value"]["summary"])
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{name}/commit/{sha}"}

    def repo(self, name):
        if name not in self.repos:
            raise Refused(404, "Repository not found", "RepoNotFound")
        return self.repos[name]

    def sha(self, repo, revision):
        if repo.at(revision) is None:
            raise Refused(404, "Revision not found", "RevisionNotFound")
        return repo.at(revision)


class Refused(Exception):
    def __init__(self, status, message, code="", **more):
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


NAME = r"([\w.-]+/[\w.-]+?)"
ROUTES = [
    (method, re.compile(pattern), answer)
    for method, pattern, answer in (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("GET", rf"/api/models/{NAME}/refs", "refs"),
        ("GET", rf"/api/models/{NAME}/commits/([^/]+)", "commits"),
        ("GET", rf"/api/models/{NAME}/tree/([^/]+)", "tree"),
        ("GET", rf"/api/models/{NAME}/revision/([^/]+)", "info"),
        ("GET", rf"/api/models/{NAME}", "info"),
        ("POST", rf"/api/models/{NAME}/branch/([^/]+)", "branch"),
        ("POST", rf"/api/models/{NAME}/preupload/([^/]+)", "preupload"),
        ("POST", rf"/api/models/{NAME}/commit/([^/]+)", "commit"),
        ("GET", rf"/api/models/{NAME}/xet-write-token/([^/]+)", "xet_token"),
        ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/([0-9a-f]+)", "put"),
    )
]
RESOLVE = re.compile(rf"/{NAME}/resolve/([^/]+)/(.+)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm, wbufsize = True, -1  # headers and body in one packet, or each answer takes 40 ms
    hub = None

    def log_message(self, *_):
        pass

    def answer(self):
        parts = urlsplit(self.path)
        self.hub.asked.append(f"{self.command} {parts.path}")
        failure = self.hub.fails(self.command, parts.path)
        if failure == "drop":
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if failure:
                raise Refused(failure, "made to fail")
            self.check_token(parts.path)
            if (found := RESOLVE.fullmatch(parts.path)) and self.command in ("GET", "HEAD"):
                self.send_file(*map(unquote, found.groups()))
                return
            self.send(200, self.find(parts, body))
        except Refused as refused:
            headers = {"X-Error-Message": str(refused)} | ({"X-Error-Code": refused.code} if refused.code else {})
            self.send(refused.status, {"error": str(refused), **refused.more}, headers)

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def check_token(self, path):
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {TOKEN}"):
            raise Refused(401, "Invalid credentials in Authorization header")
        if given is None and self.command == "POST":
            raise Refused(401, "no token")

    def find(self, parts, body):
        for method, pattern, name in ROUTES:
            if method == self.command and (found := pattern.fullmatch(parts.path)):
                is_json = (self.headers.get("Content-Type") or "").startswith(
                    ("application/json", "application/vnd.git-lfs")
                )
                ask = SimpleNamespace(
                    body=body, json=json.loads(body or b"{}") if is_json else None, query=parse_qs(parts.query)
                )
                return getattr(self.hub, name)(ask, *map(unquote, found.groups()))
        self.hub.unknown.append(f"{self.command} {self.path}")
        raise Refused(501, f"no stand-in for {self.command} {self.path}")

    def send_file(self, name, revision, path):
        repo = self.hub.repo(name)
        sha = self.hub.sha(repo, revision)
        if path not in repo.commits[sha]:
            raise Refused(404, "Entry not found", "EntryNotFound")
        is_large, content = repo.commits[sha][path]
        etag = hashlib.sha256(content).hexdigest() if is_large else git_hash(content)
        headers = {
            "ETag": f'"{etag}"',
            "X-Repo-Commit": sha,
            "X-Linked-Size": str(len(content)),
            "Accept-Ranges": "bytes",
        }
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self.send(206 if first else 200, content[first:], headers)

    def send(self, status, value, headers=None):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
        for key, text in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()
