"""A real HTTP server on this machine, for what speaks to one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JsonHandler(BaseHTTPRequestHandler):
    """Reads JSON and replies; logs nothing."""

    def body(self) -> Any:
        """What was sent."""
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def reply(
        self, code: int, data: bytes | dict[str, Any], headers: Mapping[str, str] | None = None
    ) -> None:
        """Send bytes as they are, or an object as JSON."""
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(code)
        for key, value in ({"Content-Length": str(len(data))} | dict(headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def say(self, text: str) -> None:
        """Send one choice of a chat."""
        self.reply(200, {"choices": [{"message": {"content": text}}]})

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], **shared: Any) -> Iterator[Any]:
    """The server, with ``shared`` as its attributes and its API's address as ``url``."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        for name, value in shared.items():
            setattr(server, name, value)
        vars(server)["url"] = f"http://127.0.0.1:{server.server_address[1]}/v1"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()
