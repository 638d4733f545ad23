"""The HTTP API as another program uses it: every route, its bounds, and who may ask."""

from __future__ import annotations

import json
import os
import select
import socket
import stat
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import scale
from agents import Agent, serving
from nodes import make_document, start, until
from prometheus_client.parser import text_string_to_metric_families

from nativert.agent.api.routes import ROUTES
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]
LOOP = "i=0; while :; do echo $((i=i+1)); sleep 0.05; done"


@pytest.fixture
def agent(root: Path, node: Node) -> Iterator[Agent]:
    with serving(root) as one:
        yield one
        assert "fault" not in one.log.read_text()


def test_every_route_is_described_and_answers(agent: Agent) -> None:
    """A whole life by HTTP; in the end no route is left that was not asked."""
    asked: set[str] = set()

    def ask(name: str, body: object = None, suffix: str = "", ref: str = "app") -> Any:
        route = next(r for r in ROUTES if r.name == name)
        asked.add(name)
        path = route.path.replace("{ref}", ref) + suffix
        status, headers, data = agent.request(route.method, path, body)
        assert status == route.status, data
        if route.answer is not None:
            form = "application/x-ndjson" if route.lines else route.form
            assert headers.get_content_type() == form
        if headers.get_content_type() == "application/json":
            return json.loads(data)
        return data.decode()

    described = ask("openapi")
    for route in ROUTES:
        assert described["paths"][route.path][route.method.lower()]["operationId"] == route.name
    assert ask("healthz") == {"status": "ok"}
    assert ask("version")["pid"] == agent.process.pid
    assert {row["to"] for row in ask("states")} >= {"RUNNING", "PAUSED"}
    assert ask("schema")["title"] == "FDU descriptor"
    document = make_document(shell=LOOP, veth=True)
    uuid = ask("define", {"descriptor": document, "name": "app"})["instance"]
    assert ask("configure")["state"] == "CONFIGURED"
    assert ask("start", {"env": {"A": "b"}})["state"] == "RUNNING"
    assert ask("get", ref=uuid[:13])["pid"] > 1
    assert ask("scale", {"limits": {"pids_max": 33}})["state"] == "RUNNING"
    assert ask("stats")["pids_max"] == 33
    assert [row["instance"] for row in ask("list")] == [uuid]
    assert [row["instance"] for row in ask("everywhere")["instances"]] == [uuid]
    assert [row["instances"] for row in ask("nodes")] == [1]
    assert [f["name"] for f in ask("stats_all")] == ["app"]
    assert ask("inspect")["status"] == "RUN"
    until(lambda: agent.request("GET", "/v1/instances/app/logs?format=text")[2])
    assert json.loads(ask("logs", suffix="?tail=1"))["stream"] == "stdout"
    assert ask("put_file", b"content", suffix="?path=file&mode=640")["size_bytes"] == 7
    assert json.loads(ask("list_files"))["mode"] == "0640"
    assert ask("get_file", suffix="?path=/data/file") == "content"
    assert "nativert_instance_memory_bytes" in ask("metrics")
    assert ask("pause")["state"] == "PAUSED"
    assert ask("resume")["state"] == "RUNNING"
    assert ask("restart")["state"] == "RUNNING"
    _, refused = agent.ask("POST", "/v1/instances/app/migrate", {"node": "elsewhere"})
    assert refused["error"]["code"] == "no-agent"  # In no network; test_migration_command.py is.
    assert ask("stop")["state"] == "CONFIGURED"
    ask("start", {})
    ask("kill", {"signal": 9})
    assert ask("wait", {"timeout_s": 10})["end"]["signal"] == "SIGKILL"
    assert ask("clean")["state"] == "DEFINED"
    assert ask("redefine", {"descriptor": document})["instance"] == uuid
    ask("undefine")
    ask("define", {"descriptor": document})
    ask("remove", suffix="?force=true")
    assert ask("gc", {"dry_run": True}) is not None
    assert {check["name"] for check in ask("doctor")} >= {"seccomp filter"}
    events = [json.loads(line) for line in ask("events").splitlines()]
    assert events[-1]["kind"] == "undefined"
    assert ask("latest_event") == {"seq": events[-1]["seq"]}
    assert {r.name for r in ROUTES} - asked == {
        "exec",
        "migrate",
    }  # A WebSocket: a test of its own.


def test_the_metrics_are_what_the_official_parser_takes(agent: Agent, node: Node) -> None:
    start(node, name="app", shell="while :; do :; done", native={"cpu": {"max": 0.2}})
    until(lambda: (node.stats(["app"])[0].cpu_ns or 0) > 50_000_000)
    _, headers, data = agent.request("GET", "/metrics")
    assert headers["Content-Type"].startswith("text/plain; version=")
    families = {f.name: f for f in text_string_to_metric_families(data.decode())}
    assert families["nativert_instance_cpu_seconds"].type == "counter"
    (cpu,) = families["nativert_instance_cpu_seconds"].samples
    assert cpu.name == "nativert_instance_cpu_seconds_total"
    assert set(cpu.labels) == {"instance", "name", "fdu"}
    assert 0.05 <= cpu.value < 60
    states = {s.labels["state"]: s.value for s in families["nativert_instances"].samples}
    assert (states["RUNNING"], states["PAUSED"]) == (1, 0)
    assert families["nativert_agent_cpu_seconds"].type == "counter"
    for family in families.values():
        assert family.name.startswith("nativert_")
        assert family.documentation


def test_a_thousand_commands_on_one_instance_are_serialised(agent: Agent, node: Node) -> None:
    """Each legal edge is taken once; whoever comes too late is told so."""
    start(node, name="app", shell="sleep 1000")
    total = scale.count(1000, least=100)
    with ThreadPoolExecutor(100) as threads:
        answers = list(
            threads.map(lambda _: agent.ask("POST", "/v1/instances/app/pause"), range(total))
        )
    assert Counter(status for status, _ in answers) == {200: 1, 409: total - 1}
    codes = {told["error"]["code"] for status, told in answers if status == 409}
    assert codes == {"refused-transition"}
    assert node.get("app").state == "PAUSED"
    before = node.latest_event()
    verbs = ["pause", "resume"] * (total // 2)
    with ThreadPoolExecutor(100) as threads:
        statuses = list(
            threads.map(lambda v: agent.ask("POST", f"/v1/instances/app/{v}")[0], verbs)
        )
    assert set(statuses) <= {200, 409}
    until(lambda: len(_edges(node, before)) == statuses.count(200))
    # No edge was taken twice in a row.
    edges = _edges(node, before)
    assert edges[::2] == ["resumed"] * len(edges[::2])
    assert edges[1::2] == ["paused"] * len(edges[1::2])


def _edges(node: Node, after: int) -> list[str]:
    found = node.events(after, limit=5000)
    return [e.kind for e in found if e.kind in ("paused", "resumed")]


def test_long_operations_do_not_hold_up_short_ones(agent: Agent, node: Node) -> None:
    deaf = "trap '' TERM; echo up; while :; do sleep 0.1; done"
    start(node, name="deaf", shell=deaf, native={"stop": {"grace": "1h"}})
    start(node, name="other", shell="sleep 1000")
    until(lambda: b"up" in agent.request("GET", "/v1/instances/deaf/logs?format=text")[2])
    threads = [
        threading.Thread(target=agent.ask, args=("POST", f"/v1/instances/deaf/{verb}", {}))
        for verb in ["stop"] * 40 + ["wait"] * 40
    ]
    for thread in threads:
        thread.start()
    try:
        until(lambda: _in_flight(agent) >= len(threads))
        # Both are answered long before the grace is over: nobody waits here for an hour.
        assert agent.ask("POST", "/v1/instances/other/pause")[0] == 200
        assert agent.ask("POST", "/v1/instances/other/resume")[0] == 200
    finally:
        assert agent.ask("POST", "/v1/instances/deaf/kill", {"signal": 9})[0] == 204
        for thread in threads:
            thread.join()


def _in_flight(agent: Agent) -> float:
    text = agent.request("GET", "/metrics")[2].decode()
    for family in text_string_to_metric_families(text):
        if family.name == "nativert_agent_requests_in_flight":
            return family.samples[0].value
    raise AssertionError(text)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/instances/nobody", None, 404, "not-found"),
        ("GET", "/nowhere", None, 404, "not-found"),
        ("PUT", "/v1/instances", None, 405, "usage"),
        ("POST", "/v1/instances", b"{", 400, "usage"),
        ("POST", "/v1/instances", {"descriptor": {}, "x": 1}, 400, "usage"),
        ("POST", "/v1/instances", {"descriptor": {"id": "a"}}, 400, "bad-descriptor"),
        ("GET", "/v1/events?after=x", None, 400, "usage"),
        ("GET", "/v1/events?unknown=1", None, 400, "usage"),
        ("POST", "/v1/instances", b" " * (2 << 20), 413, "usage"),
        ("GET", "/v1/instances/nobody/files", None, 404, "not-found"),
        ("PUT", "/v1/instances/nobody/file?path=x", b"", 404, "not-found"),
        ("PUT", "/v1/instances/nobody/file", b"", 400, "usage"),
        ("PUT", "/v1/instances/nobody/file?path=x&mode=4755", b"", 400, "usage"),
    ],
)
def test_what_is_wrong_is_said_in_json(
    agent: Agent, method: str, path: str, body: object, status: int, code: str
) -> None:
    answered, told = agent.ask(method, path, body)
    assert (answered, told["error"]["code"]) == (status, code)
    assert told["error"]["message"]


def test_the_socket_is_for_root_and_its_group(root: Path, node: Node) -> None:
    config = "[api]\ngroup = 54321\n"
    with serving(root, config=config) as agent:
        status = agent.socket.stat()
        assert stat.S_IMODE(status.st_mode) == 0o660
        assert (status.st_uid, status.st_gid) == (0, 54321)
        for directory in root.parents[: len(root.parents) - 1]:
            if directory != Path("/tmp"):
                os.chmod(directory, os.stat(directory).st_mode | 0o011)
        os.chmod(root, 0o755)
        assert _as_user(agent, []) == "refused"
        assert _as_user(agent, [54321]) == "200"
        # Past the mode of the file the credentials of the peer are what counts.
        os.chmod(agent.socket, 0o666)
        assert _as_user(agent, []) == "403"


def _as_user(agent: Agent, groups: list[int]) -> str:
    script = (
        "import http.client, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "try: s.connect(sys.argv[1])\n"
        "except PermissionError: sys.exit('refused')\n"
        "c = http.client.HTTPConnection('node'); c.sock = s\n"
        "c.request('GET', '/healthz'); sys.exit(str(c.getresponse().status))\n"
    )
    fd = os.open(agent.socket.parent, os.O_PATH)
    try:
        done = subprocess.run(
            ["/usr/bin/python3", "-c", script, f"/proc/self/fd/{fd}/{agent.socket.name}"],
            user=12345,
            group=12345,
            extra_groups=groups,
            pass_fds=[fd],
            capture_output=True,
            text=True,
        )
    finally:
        os.close(fd)
    return done.stderr.strip()


def test_a_page_in_a_browser_is_not_served(agent: Agent) -> None:
    status, _, _ = agent.request("GET", "/healthz", headers={"Origin": "http://evil.example"})
    assert status == 403


def test_tcp_on_loopback_serves_root_only(root: Path, node: Node) -> None:
    with serving(root, config='[api.tcp]\naddress = "127.0.0.1:25491"\n'):
        script = (
            "import http.client\n"
            "c = http.client.HTTPConnection('127.0.0.1', 25491)\n"
            "c.request('GET', '/healthz'); print(c.getresponse().status)\n"
        )

        def ask(**who: Any) -> str:
            command = ["/usr/bin/python3", "-c", script]
            return subprocess.run(command, capture_output=True, text=True, **who).stdout.strip()

        assert ask() == "200"
        assert ask(user=12345, group=12345, extra_groups=[]) == "403"


class TestBounds:
    """A short patience and few requests; what exceeds them is refused or dropped."""

    @pytest.fixture
    def agent(self, root: Path, node: Node) -> Iterator[Agent]:
        config = "[api]\nclient_timeout_s = 1.0\nmax_requests = 16\nmax_streams = 2\n"
        with serving(root, config=config) as one:
            yield one

    def test_a_slow_head_and_a_slow_body_are_given_up(self, agent: Agent) -> None:
        for part in (
            b"GET /healthz HT",
            b"POST /v1/gc HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
        ):
            sock = agent.connect()
            sock.sendall(part)
            data = b""
            while chunk := sock.recv(65536):
                data += chunk
            sock.close()
            assert data == b"" or b"504" in data.split(b"\r\n")[0]

    def test_a_large_head_is_refused(self, agent: Agent) -> None:
        status, _, _ = agent.request("GET", "/healthz", headers={"X": "y" * 100_000})
        assert status == 400
        many = {f"X{n}": "y" for n in range(200)}
        assert agent.request("GET", "/healthz", headers=many)[0] == 400

    def test_what_is_too_much_is_told_to_come_again(self, agent: Agent, node: Node) -> None:
        start(node, name="app", shell="sleep 1000")
        waiting = [_waits(agent) for _ in range(2)]

        def busy() -> bool:
            # One that came while the question below had the place was turned away.
            for turned_away in select.select(waiting, [], [], 0)[0]:
                turned_away.close()
                waiting[waiting.index(turned_away)] = _waits(agent)
            path = "/v1/instances/app/wait"
            return agent.request("POST", path, {"timeout_s": 0})[0] == 503

        until(busy)
        status, headers, data = agent.request("POST", "/v1/instances/app/wait")
        assert (status, headers["Retry-After"]) == (503, "1")
        assert json.loads(data)["error"]["code"] == "busy"
        crowd = [agent.connect() for _ in range(16)]
        until(lambda: agent.request("GET", "/healthz")[0] == 503)
        for sock in (*crowd, *waiting):
            sock.close()
        until(lambda: agent.request("GET", "/healthz")[0] == 200)

    def test_who_does_not_read_a_stream_is_dropped(self, agent: Agent, node: Node) -> None:
        start(node, name="app", shell="yes 0123456789012345678901234567890123456789")
        sock = agent.connect()
        sock.sendall(b"GET /v1/instances/app/logs?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: _streams(agent) == 1)
        until(lambda: _streams(agent) == 0, deadline_s=scale.LONG_S)
        sock.close()
        node.remove("app", force=True)


def _waits(agent: Agent) -> socket.socket:
    sock = agent.connect()
    sock.sendall(b"POST /v1/instances/app/wait HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    return sock


def _streams(agent: Agent) -> float:
    text = agent.request("GET", "/metrics")[2].decode()
    families = text_string_to_metric_families(text)
    return next(f.samples[0].value for f in families if f.name == "nativert_agent_streams")
