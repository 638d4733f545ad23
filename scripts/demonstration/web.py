"""The applications of the demo, and the requests that reach them."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator

PORTS = range(25080, 25180)

WEB = """\
id: web
name: web
command: {{binary: /usr/sbin/nginx, args: ["-c", /site/nginx.conf]}}
hypervisor: BARE
interfaces: [{{name: eth0}}]                  # a veth of its own, an address of the node's pool
native:
  mounts: [{{source: {site}, target: /site}}]
  cpu: {{max: {cores}}}                         # cores
  memory: {{max: 64M}}
  pids: {{max: 16}}
  network: {{ports: ["{port}:80"]}}              # HOST:INSTANCE
  stop: {{signal: SIGQUIT, grace: 5s}}
"""

GREEDY = """\
id: greedy
name: greedy
command: {binary: tail, args: [/dev/zero]}    # looks for a line end that never comes
hypervisor: BARE
native:
  memory: {max: 32M, swap: 0}
"""

# Not as root, so not by Debian's configuration: what nginx writes goes to /tmp.
NGINX = """\
daemon off; worker_processes 1; pid /tmp/nginx.pid; error_log stderr;
events {}
http {
  access_log off; gzip on; gzip_comp_level 9; gzip_types text/plain;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  server { listen 80; root /site; location / { default_type text/plain; } }
}
"""


def free_port() -> int:
    for port in PORTS:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("", port))
            return port
    raise SystemExit(f"demo: no free port between {PORTS[0]} and {PORTS[-1]}")


def get(host: str, port: int, timeout_s: float, path: str = "/") -> tuple[int, str, float]:
    """Return status, body and milliseconds of one request."""
    began = time.monotonic()
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    text = body.decode(errors="replace").strip() if path == "/" else ""
    return response.status, text, (time.monotonic() - began) * 1000


def get_soon(host: str, port: int) -> tuple[int, str, float]:
    """Ask until the server, which has just been started, listens."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return get(host, port, 5)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


@contextlib.contextmanager
def load(host: str, port: int) -> Iterator[Callable[[], int]]:
    """Have pages compressed for two readers for the length of the block."""
    over = threading.Event()
    served: list[int] = []

    def read() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                get(host, port, 10, "/big.txt")
                served.append(1)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        yield lambda: len(served)
    finally:
        over.set()
        for reader in readers:
            reader.join()
