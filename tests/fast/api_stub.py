"""A minimal HTTPS API server, and an HTTP proxy in front of it."""

from __future__ import annotations

import base64
import datetime as dt
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization

from tests.fast.certificates import self_signed

NAME = "api.example.com"
"""The API server's name. Only the proxy can resolve it."""


@dataclass
class StubApi:
    """Records what it receives, and answers as if each request had succeeded.

    Attributes:
        ahead: How far its clock is ahead of this machine's; None if it sends no `Date`.
        requests: Method and path of each request.
        bodies: The decoded bodies.
    """

    port: int
    certificate: str
    ahead: dt.timedelta | None = dt.timedelta()
    requests: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def kubeconfig(self, host: str = "127.0.0.1") -> str:
        """A kubeconfig with a token, for the server under a host name or address."""
        ca = base64.b64encode(self.certificate.encode()).decode()
        cluster = {"server": f"https://{host}:{self.port}", "certificate-authority-data": ca}
        return yaml.safe_dump(
            {
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )


@contextmanager
def stub_api(folder: Path, *, end: dt.datetime | None = None) -> Iterator[StubApi]:
    """Serve until the block ends.

    Args:
        folder: Holds the certificate.
        end: The end of the certificate's validity, which lasts a day.
    """
    key, pem = self_signed("kubernetes", end=end, names=(NAME, "127.0.0.1"))
    pair = folder / "api.pem"
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pair.write_bytes(pem + encoded)

    class Handler(BaseHTTPRequestHandler):
        def do_DELETE(self) -> None:
            self._answer(404)

        def do_POST(self) -> None:
            stub.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._answer(201)

        def _answer(self, status: int) -> None:
            stub.requests.append(f"{self.command} {self.path}")
            self.send_response_only(status)
            if stub.ahead is not None:
                now = dt.datetime.now(dt.UTC) + stub.ahead
                self.send_header("Date", format_datetime(now, usegmt=True))
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    stub = StubApi(server.server_port, pem.decode())
    with _running(server):
        yield stub


@dataclass
class StubProxy:
    """A proxy that connects every tunnel to the same local port.

    Attributes:
        url: Its URL.
        tunnels: The targets that clients asked for.
        logins: The `Proxy-Authorization` of each of those requests; empty if it had none.
        refuse: Answer with 403 instead.
    """

    url: str
    tunnels: list[str] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    refuse: bool = False


@contextmanager
def stub_proxy(port: int) -> Iterator[StubProxy]:
    """Run a proxy until the block ends; `port` is where all tunnels lead."""

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            proxy.tunnels.append(self.path)
            proxy.logins.append(self.headers.get("Proxy-Authorization", ""))
            if proxy.refuse:
                self.send_response(403)
                self.end_headers()
                return
            with socket.create_connection(("127.0.0.1", port)) as upstream:
                self.send_response(200)
                self.end_headers()
                back = threading.Thread(target=_copy, args=(upstream, self.connection), daemon=True)
                back.start()
                _copy(self.connection, upstream)
                back.join()
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy = StubProxy(f"http://127.0.0.1:{server.server_port}")
    with _running(server):
        yield proxy


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other direction ended first


@contextmanager
def _running(server: ThreadingHTTPServer) -> Iterator[None]:
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
