"""The explorer's web server: a page, its two files, and what they ask for as JSON.

The standard library's server is enough: one reader and a few requests a click. Texts of passages
are anybody's, and so the page puts them in as text, its policy allows no script but its own, and
nothing is loaded from elsewhere. A request must name a host that the server is known by, so that a
web page elsewhere cannot read the records through the reader's browser.
"""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from dynarag_jax import __version__
from dynarag_jax.errors import InputError
from dynarag_jax.explore.details import RecordsChanged
from dynarag_jax.explore.run_records import RunRecords

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/detail.js": ("detail.js", "text/javascript; charset=utf-8"),
    "/plots.js": ("plots.js", "text/javascript; charset=utf-8"),
}
"""All that is served beside JSON, by path; a path is looked up here and never in a folder."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LONGEST_ADDRESS = 8192
"""Characters of a request's path and parameters."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("", "0.0.0.0", "::")


class ExploreServer(ThreadingHTTPServer):
    """Serves one run's records.

    Args:
      host, port: where it listens; port 0 takes a free one.

    Raises:
      InputError: it cannot listen there.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, records: RunRecords, host: str, port: int):
        self.records = records
        self.files = {
            path: (resources.files("dynarag_jax.explore").joinpath("page", name).read_bytes(), kind)
            for path, (name, kind) in FILES.items()
        }
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), ExploreHandler)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise InputError(
                f"cannot listen on {host or 'all addresses'}, port {port} ({reason}); choose "
                f"another --port, 0 for a free one, or --host"
            ) from None
        names = {*LOOPBACK, host} if host in LOOPBACK else {host}
        # Whoever listens on all addresses is reached by names that nobody knows here.
        self.hosts = None if host in EVERYWHERE else names

    @property
    def url(self) -> str:
        """The address of the page."""
        host, port = self.server_address[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(host), str(host))
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing is said of clients that leave in the middle."""
        import sys

        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class ExploreHandler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    server: ExploreServer
    server_version, sys_version = f"dynarag_jax/{__version__}", ""
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Send a file of the page, or JSON."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """The same without the content."""
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        if len(self.path) > LONGEST_ADDRESS:
            return self._fail(HTTPStatus.REQUEST_URI_TOO_LONG, "the address is too long", body)
        if not self._known_host():
            return self._fail(
                HTTPStatus.MISDIRECTED_REQUEST,
                "this address is not one that the server is known by; start it with --host",
                body,
            )
        try:
            address = urlsplit(self.path)
        except ValueError as error:
            return self._fail(HTTPStatus.BAD_REQUEST, f"no address: {error}", body)
        try:
            if address.path in self.server.files:
                content, kind = self.server.files[address.path]
                return self._send(HTTPStatus.OK, content, kind, body)
            answer = self._answers().get(address.path)
            if answer is None:
                return self._fail(HTTPStatus.NOT_FOUND, "there is no such page", body)
            # A page of another origin may send a plain request, but no header of its own.
            if address.path == "/api/steps" and self.headers.get("X-Explore") != "1":
                return self._fail(
                    HTTPStatus.FORBIDDEN, "steps are computed for the page only", body
                )
            pairs = parse_qsl(address.query, keep_blank_values=True, strict_parsing=False)
            self._json(HTTPStatus.OK, answer(dict(pairs)), body)
        except RecordsChanged as error:
            self._fail(HTTPStatus.CONFLICT, str(error), body)
        except InputError as error:
            self._fail(HTTPStatus.BAD_REQUEST, str(error), body)
        except ConnectionError:
            raise
        except Exception:
            self._fail(
                HTTPStatus.INTERNAL_SERVER_ERROR, "a bug: the server's terminal says which", body
            )
            raise

    def _answers(self) -> Mapping[str, Callable[[dict[str, str]], Any]]:
        records = self.server.records
        return {
            "/api/run": lambda given: records.state(),
            "/api/questions": records.questions,
            "/api/question": records.question,
            "/api/steps": records.steps,
        }

    def _known_host(self) -> bool:
        if self.server.hosts is None:
            return True
        name = self.headers.get("Host", "")
        try:
            return urlsplit(f"//{name}").hostname in self.server.hosts
        except ValueError:
            return False

    def _fail(self, status: HTTPStatus, message: str, body: bool) -> None:
        self._json(status, {"error": " ".join(message.split())}, body)

    def _json(self, status: HTTPStatus, value: Any, body: bool) -> None:
        content = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        self._send(status, content, "application/json; charset=utf-8", body)

    def _send(self, status: HTTPStatus, content: bytes, kind: str, body: bool) -> None:
        packed = len(content) > 4096 and "gzip" in self.headers.get("Accept-Encoding", "")
        if packed:
            content = gzip.compress(content, 1)
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        } | ({"Content-Encoding": "gzip"} if packed else {})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: each click makes some."""
