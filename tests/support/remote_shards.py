"""Servers of shards for tests: a local HTTP server whose answers can fail, and a stand-in for S3 on disk."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fsspec  # noqa: F401
from fsspec.implementations.local import LocalFileSystem


@dataclass
class Server:
    """An HTTP server of one folder; `requests` counts the GETs of each path, such as /shards/00000.tar."""

    url: str = ""
    requests: dict[str, int] = field(default_factory=dict)
    failures: dict[str, list[int]] = field(default_factory=dict)
    """Statuses of a path's next GETs; 0 closes the connection in the middle of the file."""
    denied: set[str] = field(default_factory=set)
    """Paths that always answer 403."""


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Serve a folder over HTTP, like `python -m http.server`: with listings, without ranges."""
    state = Server()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def do_GET(self) -> None:
            state.requests[self.path] = state.requests.get(self.path, 0) + 1
            failures = state.failures.get(self.path, [])
            if self.path in state.denied:
                self.send_error(HTTPStatus.FORBIDDEN)
            elif not failures:
                super().do_GET()
            elif (status := failures.pop(0)) != 0:
                self.send_error(status)
            else:
                data = (folder / self.path.lstrip("/")).read_bytes()
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])

        def do_HEAD(self) -> None:
            if self.path in state.denied:
                self.send_error(HTTPStatus.FORBIDDEN)
            else:
                super().do_HEAD()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        yield state
        server.shutdown()


@contextmanager
def s3_on_disk(folder: Path) -> Iterator[None]:
    """Let fsspec find s3://BUCKET in the folder BUCKET of `folder`, in this process."""

    class S3OnDisk(LocalFileSystem):
        protocol = ("s3",)
        cachable = False

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            if path.startswith("s3://"):
                path = f"{folder}/{path.removeprefix('s3://')}"
            return super()._strip_protocol(path)

    with patch.dict(sys.modules["fsspec.registry"]._registry, {"s3": S3OnDisk}):
        yield
