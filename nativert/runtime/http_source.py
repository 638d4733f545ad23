"""One HTTP request whose every read is bounded in time, through urllib.

urllib's own time-out starts anew with each received byte, so that a server which
sends one byte per second holds its client for ever. Here the whole exchange,
headers included, has a deadline and a least speed.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import string
import time
import urllib.error
import urllib.request
from typing import IO, Any, Final
from urllib.parse import quote, urljoin, urlsplit

from nativert.runtime.image_errors import ImageError
from nativert.runtime.protocols import DownloadLimits

# Under this average over one stall time-out a transfer counts as stalled.
MIN_BYTES_PER_S: Final = 256
_REDIRECTS: Final = 8


class _PacedReader(io.RawIOBase):
    """A socket's bytes; each read waits no longer than the stall time-out and the deadline."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, stall_s: float, deadline: float):
        self._raw = raw
        self._sock = sock
        self._stall_s = stall_s
        self._deadline = deadline
        self._window = time.monotonic()
        self._received = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        now = time.monotonic()
        if now >= self._deadline:
            raise TimeoutError("the transfer takes longer than its total time-out")
        if now - self._window >= self._stall_s:
            if self._received < MIN_BYTES_PER_S * self._stall_s:
                raise TimeoutError(f"only {self._received} bytes came in {self._stall_s:g} s")
            self._window, self._received = now, 0
        self._sock.settimeout(min(self._stall_s, self._deadline - now))
        try:
            count = self._raw.readinto(buffer) or 0
        except TimeoutError:
            if time.monotonic() >= self._deadline:
                raise TimeoutError("the transfer takes longer than its total time-out") from None
            raise TimeoutError(f"nothing came for {self._stall_s:g} s") from None
        self._received += count
        return count

    def close(self) -> None:
        if not self.closed:
            # The connection's socket closes with the last of its files: this one.
            self._raw.close()
        super().close()


class _PacedSocket:
    """What `HTTPResponse` takes for a socket: it only asks it for a file."""

    def __init__(self, sock: socket.socket, stall_s: float, deadline: float) -> None:
        self._arguments = (sock, stall_s, deadline)

    def makefile(self, _mode: str) -> io.BufferedReader:
        sock, stall_s, deadline = self._arguments
        raw = sock.makefile("rb", buffering=0)
        return io.BufferedReader(_PacedReader(raw, sock, stall_s, deadline), 64 << 10)


class _Redirects(urllib.request.BaseHandler):
    """Redirects to http and https only; urllib's own reads a redirect's body of any length."""

    def __init__(self) -> None:
        self._left = _REDIRECTS

    def http_error_302(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        _code: int,
        _msg: str,
        headers: http.client.HTTPMessage,
    ) -> Any:
        location = headers.get("Location")
        if not location:
            return None
        fp.close()
        self._left -= 1
        if self._left < 0:
            raise ImageError(f"the server redirects more than {_REDIRECTS} times")
        # Servers send blanks and raw UTF-8 here; what is quoted already stays as it is.
        uri = quote(urljoin(req.full_url, location.strip()), safe=string.punctuation)
        parts = urlsplit(uri)
        if parts.scheme not in ("http", "https"):
            raise ImageError(f"the server redirects to {parts.scheme}:, which is not followed")
        if not parts.hostname or "@" in parts.netloc:
            raise ImageError("the server redirects to an address without a host, or with a user")
        if req.type == "https" and parts.scheme == "http":
            raise ImageError(
                "the server redirects from https to plain http, which is not followed",
                hint="name the http address itself, with a checksum, if that is meant",
            )
        onward = urllib.request.Request(uri, headers=req.headers)  # noqa: S310 checked above
        return self.parent.open(onward, timeout=req.timeout)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def open_url(
    uri: str, headers: dict[str, str], limits: DownloadLimits, deadline: float
) -> http.client.HTTPResponse:
    """Send a GET and return the answer; `deadline` is of the monotonic clock, in seconds.

    Raises `urllib.error.HTTPError` for a refusal by the server, `OSError` for the network's,
    `ImageError` for a redirect elsewhere.
    """

    def respond(sock: socket.socket, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:
        paced: Any = _PacedSocket(sock, limits.stall_timeout_s, deadline)
        return http.client.HTTPResponse(paced, *args, **kwargs)

    # do_open() wants classes; what it does with them is call them.
    class Plain(http.client.HTTPConnection):
        response_class = staticmethod(respond)  # type: ignore[assignment]

    class Tls(http.client.HTTPSConnection):
        response_class = staticmethod(respond)  # type: ignore[assignment]

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, req)

    class TlsHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Tls, req, context=ssl.create_default_context())

    # Not build_opener(): it would bring file:, ftp: and data: along.
    opener = urllib.request.OpenerDirector()
    opener.addheaders = []
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
        PlainHandler(),
        TlsHandler(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(uri, headers=headers)  # noqa: S310 the scheme was checked
    timeout_s = max(0.001, min(limits.connect_timeout_s, deadline - time.monotonic()))
    response: http.client.HTTPResponse = opener.open(request, timeout=timeout_s)
    return response
