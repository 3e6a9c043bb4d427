"""A hub in a thread: the few routes by which huggingface_hub lists and downloads files."""

import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "1" * 40


class _Handler(BaseHTTPRequestHandler):
    repositories: dict[str, Path]
    downloaded: list[str]

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), as_tree="tree" in parts)
        else:
            self._send_file("/".join(parts[:2]), "/".join(parts[4:]))

    do_HEAD = do_GET  # noqa: N815

    def _describe(self, name, *, as_tree):
        folder = self.repositories.get(name)
        if folder is None:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = [(str(path.relative_to(folder)), path.stat().st_size) for path in paths]
        body = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file, _ in files]}
        if as_tree:
            body = [
                {"type": "file", "path": file, "size": size, "oid": "0" * 40}
                for file, size in files
            ]
        self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _send_file(self, name, file):
        path = self.repositories.get(name, Path("/nowhere")) / file
        if not path.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if self.command == "GET":
            self.downloaded.append(file)
        self._answer(200, content, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT})

    def _answer(self, status, body, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def fake_hub(repositories):
    """Yields the hub's URL and the list of files that were downloaded from it."""
    downloaded = []
    attributes = {"repositories": repositories, "downloaded": downloaded}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), attributes))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", downloaded
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
