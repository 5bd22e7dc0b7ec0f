"""Loads models from a stand-in of the hub, and prints what came of it as one JSON object.

    python hub_client.py FOLDER

FOLDER/<owner>/<name> are the repositories. A process of its own, because the hub's address and cache are read from the
environment when its client is imported.
"""

import hashlib
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", COMMIT)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as downloading needs; each connection ends with its answer."""

    root = Path(sys.argv[1])
    asked: list[str] = []  # noqa: RUF012  one for the server

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[4], parts[5])
        else:
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _describe(self, name, what, revision):
        folder = self.root / name
        if not folder.is_dir():
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in REVISIONS:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif what == "tree":
            files = [path for path in folder.rglob("*") if path.is_file()]
            entries = [
                {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": oid(path)}
                for path in files
            ]
            self._send(200, json.dumps(entries).encode())
        else:
            self._send(200, json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())

    def _file(self, name, revision, file):
        path = self.root / name / file
        if revision not in REVISIONS or not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if self.command == "GET":
            Hub.asked.append(f"{name}/{file}")
        self._send(200, path.read_bytes(), {"X-Repo-Commit": COMMIT, "ETag": f'"{oid(path)}"'})

    def _send(self, status, body, headers=None):
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def oid(path):
    return hashlib.sha1(path.read_bytes()).hexdigest()


def attempt(load):
    """The model's fingerprint and dimension, or the error's kind and text."""
    from legit_embedding.errors import LegitError
    from legit_embedding.values import Options

    try:
        model = load()
    except LegitError as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {"fingerprint": model.fingerprint(Options()), "dim": model.info.dim}


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"

    from legit_embedding.models.base import InputLimits
    from legit_embedding.models.catalog import ModelSpec
    from legit_embedding.models.clip import OpenClipAdapter
    from legit_embedding.models.text import TransformersAdapter

    def clip(**entry):
        spec = ModelSpec(key="m", adapter="open_clip", device="cpu", dtype="float32", **entry)
        return attempt(lambda: OpenClipAdapter().load(spec, InputLimits(max_pixels=1)))

    def text(weights, **entry):
        spec = ModelSpec(key="m", adapter="transformers", device="cpu", dtype="float32", weights=weights, **entry)
        return attempt(lambda: TransformersAdapter().load(spec, InputLimits(max_pixels=1)))

    outcome = {
        "clip": clip(weights="hf-hub:owner/clip"),
        "clip at a tag": clip(weights="hf-hub:owner/clip@v1"),
        "clip at no revision": clip(weights="hf-hub:owner/clip", revision="v9"),
        "clip without weights": clip(weights="hf-hub:owner/empty"),
        "clip unknown": clip(weights="hf-hub:owner/nothing"),
        "text": text("owner/bert"),
        "text pickled": text("owner/pickled", revision="v1"),
        "text unknown": text("owner/nothing"),
        "text untrained": text("owner/config-only", untrained=True),
        "untrained": clip(name="ViT-S-32-alt", untrained=True, seed=7),
    }
    server.shutdown()
    server.server_close()
    outcome["clip from the cache"] = clip(weights="hf-hub:owner/clip")
    outcome["text from the cache"] = text("owner/bert")
    outcome["unreachable"] = text("owner/never-seen")
    print(json.dumps({"outcome": outcome, "asked": Hub.asked, "endpoint": os.environ["HF_ENDPOINT"]}))


if __name__ == "__main__":
    main()
