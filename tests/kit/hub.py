"""A Hugging Face Hub of one data set on loopback: the few calls that huggingface_hub makes for pushing and pulling a
data set."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class HubServer:
    """`files`: what lies on the data set's main branch, which is also its pull request 1. `commits`: how many there
    were. Use: `with HubServer() as hub`."""

    def __init__(self, repo: str = "org/name") -> None:
        self.repo, self.files, self.commits = repo, dict[str, bytes](), 0
        self.objects: dict[str, bytes] = {}  # LFS, by SHA-256
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def sha(self) -> str:
        """The commit that is the branch's head."""
        return hashlib.sha1(str(self.commits).encode()).hexdigest()

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def entry(self, path: str) -> dict[str, Any]:
        """A file as the API describes it."""
        data = self.files[path]
        value: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        if _is_lfs(path):
            value["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return value

    def commit(self, body: bytes) -> None:
        """All of a commit's operations, or none."""
        files = dict(self.files)
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "lfsFile":
                files[item["value"]["path"]] = self.objects[item["value"]["oid"]]
            elif item["key"] == "deletedFile":
                del files[item["value"]["path"]]
        self.files = files
        self.commits += 1


def _is_lfs(path: str) -> bool:
    return path.endswith((".arrow", ".zip"))


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    @property
    def _path(self) -> str:
        return unquote(urlsplit(self.path).path.replace("refs%2Fpr%2F1", "main"))

    def _json(self, value: Any, status: int = 200) -> None:
        self._bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _bytes(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self._bytes(b"{}", 404, {"X-Error-Code": code})

    def do_GET(self) -> None:
        path, repo = self._path, self.hub.repo
        if path in (f"/api/datasets/{repo}", f"/api/datasets/{repo}/revision/main"):
            siblings = [{"rfilename": name} for name in self.hub.files]
            self._json(
                {"id": repo, "sha": self.hub.sha, "private": False, "tags": [], "downloads": 0, "siblings": siblings}
            )
        elif path.startswith(f"/api/datasets/{repo}/tree/"):
            self._json([self.hub.entry(name) for name in sorted(self.hub.files)])
        elif path.startswith(f"/datasets/{repo}/resolve/"):
            self._resolve(path.removeprefix(f"/datasets/{repo}/resolve/").partition("/")[2])
        else:
            self._missing("RepoNotFound")

    do_HEAD = do_GET

    def _resolve(self, name: str) -> None:
        if name not in self.hub.files:
            self._missing("EntryNotFound")
            return
        data, headers = (
            self.hub.files[name],
            {"X-Repo-Commit": self.hub.sha, "ETag": f'"{self.hub.entry(name)["oid"]}"'},
        )
        wanted = self.headers.get("Range")
        if wanted is None:
            self._bytes(data, 200, headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        self._bytes(part, 206, {**headers, "Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def do_POST(self) -> None:
        path, repo, body = self._path, self.hub.repo, self._body()
        if path == "/api/repos/create":
            self._json({"url": f"{self.hub.endpoint}/datasets/{repo}"})
        elif path == f"/api/datasets/{repo}/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if _is_lfs(name) else "regular" for name in names}
            self._json(
                {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]}
            )
        elif path == f"/datasets/{repo}.git/info/lfs/objects/batch":
            self._json({"transfer": "basic", "objects": [self._upload(item) for item in json.loads(body)["objects"]]})
        elif path == f"/api/datasets/{repo}/commit/main":
            self.hub.commit(body)
            self._json(
                {"commitUrl": f"{self.hub.endpoint}/datasets/{repo}/commit/{self.hub.sha}", "commitOid": self.hub.sha}
            )
        elif path.startswith(f"/api/datasets/{repo}/paths-info/"):
            names = parse_qs(body.decode()).get("paths", [])
            self._json([self.hub.entry(name) for name in names if name in self.hub.files])
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        else:
            self._missing("RepoNotFound")

    def _upload(self, item: dict[str, Any]) -> dict[str, Any]:
        if item["oid"] in self.hub.objects:
            return item
        return {
            **item,
            "authenticated": True,
            "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"}},
        }

    def do_PUT(self) -> None:
        data, oid = self._body(), self.path.rpartition("/")[2]
        if hashlib.sha256(data).hexdigest() == oid:
            self.hub.objects[oid] = data
            self._bytes(b"")
        else:
            self._missing("Mismatch")
