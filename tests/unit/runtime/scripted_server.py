"""A server that answers each connection by the next step of a script, right or wrong."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import scale

Step = Callable[[socket.socket, str], None]


def answer(head: str, body: bytes = b"") -> Step:
    """Send one answer as written, then close."""

    def step(client: socket.socket, _request: str) -> None:
        client.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)

    return step


def ok(body: bytes, *headers: str, claim: int | None = None) -> Step:
    length = len(body) if claim is None else claim
    return answer("\n".join(["HTTP/1.1 200 OK", f"Content-Length: {length}", *headers]), body)


def ranged(body: bytes, *, etag: str = '"v1"', stop: int | None = None) -> Step:
    """Serve ranges of one version; `stop` cuts the answer after that byte of the file."""

    def step(client: socket.socket, request: str) -> None:
        wanted = re.search(r"Range: bytes=(\d+)-", request)
        same = f"If-Range: {etag}" in request
        start = int(wanted[1]) if wanted and same else 0
        head = [
            "HTTP/1.1 206 Partial Content" if start else "HTTP/1.1 200 OK",
            f"Content-Length: {len(body) - start}",
            f"ETag: {etag}",
            "Accept-Ranges: bytes",
        ]
        if start:
            head.append(f"Content-Range: bytes {start}-{len(body) - 1}/{len(body)}")
        client.sendall("\r\n".join([*head, "", ""]).encode() + body[start:stop])

    return step


class Server:
    def __init__(self, steps: list[Step], tls: ssl.SSLContext | None) -> None:
        self._steps = steps
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._tls = tls
        scheme = "https" if tls else "http"
        self.address = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[str] = []
        self.done = threading.Event()  # set at the end, so that a step may hang until then
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def _serve(self) -> None:
        for step in self._steps:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._tls:
                try:
                    client = self._tls.wrap_socket(client, server_side=True)
                except OSError:
                    continue  # the client does not like the certificate
            with client:
                request = b""
                while b"\r\n\r\n" not in request and (data := client.recv(65536)):
                    request += data
                self.requests.append(request.decode())
                try:
                    step(client, request.decode())
                except OSError:
                    pass  # the client had enough of it

    def close(self) -> None:
        self.done.set()
        # shutdown() wakes accept(), close() alone does not.
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self._threads[0].join(scale.LONG_S)
        assert not self._threads[0].is_alive()


@contextmanager
def serving(*steps: Step, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(list(steps), tls)
    try:
        yield server
    finally:
        server.close()
