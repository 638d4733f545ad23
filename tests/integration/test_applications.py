"""Real servers, unmodified, each in a network of its own: python, redis-server, nginx."""

from __future__ import annotations

import http.client
import socket
import subprocess
from pathlib import Path

import pytest
import scale
from nodes import address, log_text, make_descriptor, run_inside, start, until, until_logged

from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

WEB = """
import http.server, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"from inside\\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler)
print("serving")
server.serve_forever()
"""


def get(host: str, port: int, *, timeout_s: float = 5.0, path: str = "/") -> tuple[int, bytes]:
    """Ask a web server; raises OSError."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def answers(host: str, port: int) -> bool:
    """Whether something accepts TCP connections there."""
    try:
        socket.create_connection((host, port), 1.0).close()
    except OSError:
        return False
    return True


def test_web_server_on_its_own_address_and_on_a_published_port(node: Node) -> None:
    web = start(
        node, python=WEB, args=["80"], veth=True, native={"network": {"ports": ["21001:80/tcp"]}}
    )
    until_logged(node, web, "serving")
    inside = address(node, web)
    assert get(inside, 80) == (200, b"from inside\n")
    assert get("127.0.0.1", 21001) == (200, b"from inside\n")
    figures = node.stats([web])[0]
    assert figures.net_rx_bytes
    assert figures.net_tx_bytes
    code, seen = run_inside(node, web, "cat", "/proc/net/dev")
    assert code == 0
    assert {line.split(":")[0].strip() for line in seen.splitlines()[2:]} == {"lo", "eth0"}
    node.stop(web)
    # The namespaces stay, so the address does; nobody listens on it.
    assert not answers(inside, 80)
    node.run(web)
    until(lambda: log_text(node, web).count("serving") == 2)
    assert get("127.0.0.1", 21001) == (200, b"from inside\n")
    node.stop(web)
    node.clean(web)
    assert not answers("127.0.0.1", 21001)


def test_paused_requests_hang_and_resumed_they_are_answered(node: Node) -> None:
    web = start(node, python=WEB, args=["80"], veth=True)
    until_logged(node, web, "serving")
    inside = address(node, web)
    assert node.pause(web).state == "PAUSED"
    # The kernel inside still accepts; the frozen server does not answer.
    waiting = http.client.HTTPConnection(inside, 80, timeout=0.3)
    waiting.request("GET", "/")
    with pytest.raises(TimeoutError):
        waiting.getresponse()
    before = node.stats([web])[0].cpu_ns
    assert node.stats([web])[0].cpu_ns == before
    assert node.resume(web).state == "RUNNING"
    waiting.close()
    assert get(inside, 80) == (200, b"from inside\n")

    node.pause(web)
    late = http.client.HTTPConnection(inside, 80, timeout=scale.LONG_S)
    late.request("GET", "/")
    node.resume(web)
    # Asked while it was paused, answered after.
    assert late.getresponse().read() == b"from inside\n"
    late.close()


def test_instances_reach_each_other(node: Node) -> None:
    web = start(node, name="web", python=WEB, args=["80"], veth=True)
    until_logged(node, web, "serving")
    ask = f"import urllib.request as u; print(u.urlopen('http://{address(node, web)}').read())"
    client = start(node, name="client", python=ask, veth=True)
    end = node.wait(client, timeout_s=scale.LONG_S).end
    assert end is not None
    assert (end.exit_code, log_text(node, client)) == (0, "b'from inside\\n'\n")


@pytest.mark.apps
def test_redis_from_debian(node: Node) -> None:
    redis = start(
        node,
        name="redis",
        binary="/usr/bin/redis-server",
        args=["--protected-mode", "no", "--save", "", "--dir", "/data"],
        veth=True,
        native={
            "memory": {"max": "64M"},
            "pids": {"max": 32},
            "network": {"ports": ["127.0.0.1:21002:6379"]},
        },
    )
    until_logged(node, redis, "Ready to accept connections")

    def ask(*words: str, host: str, port: int) -> str:
        done = subprocess.run(
            ["redis-cli", "-h", host, "-p", str(port), *words],
            capture_output=True,
            text=True,
            timeout=scale.LONG_S,
        )
        return done.stdout.strip()

    assert ask("set", "where", "inside", host=address(node, redis), port=6379) == "OK"
    assert ask("get", "where", host="127.0.0.1", port=21002) == "inside"
    assert run_inside(node, redis, "redis-cli", "get", "where") == (0, "inside\n")
    ended = node.stop(redis).end
    assert ended is not None
    # It handles TERM itself: saves what is to be saved and exits with 0.
    assert (ended.reason, ended.exit_code, ended.signal) == ("stopped", 0, None)
    assert "bye bye" in log_text(node, redis)


@pytest.mark.apps
def test_nginx_from_debian_on_port_80_without_a_capability(node: Node, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("the site\n")
    tmp_path.chmod(0o755)
    configuration = (
        "daemon off; worker_processes 2; pid /run/nginx.pid; error_log stderr; "
        "events {} http { access_log off; server { listen 80; root /site; } }"
    )
    (tmp_path / "nginx.conf").write_text(configuration)
    nginx = start(
        node,
        name="nginx",
        binary="/usr/sbin/nginx",
        args=["-c", "/etc-nginx.conf", "-e", "stderr"],
        veth=True,
        native={
            "user": "www-data",
            "mounts": [
                {"source": str(site), "target": "/site"},
                {"source": str(tmp_path / "nginx.conf"), "target": "/etc-nginx.conf"},
            ],
            "tmpfs": ["/var/lib/nginx", "/var/log/nginx"],
            "network": {"ports": ["21003:80"]},
            "stop": {"signal": "SIGQUIT", "grace": "60s"},
        },
    )
    until(lambda: answers("127.0.0.1", 21003))
    assert get("127.0.0.1", 21003) == (200, b"the site\n")
    assert get(address(node, nginx), 80) == (200, b"the site\n")
    row = node.get(nginx)
    assert row.pids == 3  # master and two workers
    assert row.pid is not None
    status = Path(f"/proc/{row.pid}/status").read_text()
    assert "CapEff:\t0000000000000000" in status
    ended = node.stop(nginx).end
    assert ended is not None
    assert (ended.reason, ended.exit_code) == ("stopped", 0)
    assert not answers("127.0.0.1", 21003)


def test_published_port_is_given_back_and_taken_again(node: Node) -> None:
    native = {"network": {"ports": ["21004:80"]}}
    descriptor = make_descriptor(python=WEB, args=["80"], veth=True, native=native)
    web = node.define(descriptor).instance
    for _ in range(3):
        node.configure(web)
        node.run(web)
        until(lambda: answers("127.0.0.1", 21004))
        assert get("127.0.0.1", 21004)[0] == 200
        node.stop(web)
        node.clean(web)
