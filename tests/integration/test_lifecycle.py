"""The life of an instance from define to undefine: names, runs, data, logs and figures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import census
import pytest
import scale
from nodes import ended, log_text, make_descriptor, run_inside, start, tag_of, until, until_logged

from nativert.errors import Code, NativertError, TransitionError, UnknownInstanceError
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"
MIB = 1 << 20


def test_every_operation_and_nothing_left(node: Node, root: Path) -> None:
    descriptor = make_descriptor(shell=SLEEP, veth=True)
    before = census.take()
    row = node.define(descriptor)
    app = row.instance
    assert (row.state, row.name, row.pid, row.end) == ("DEFINED", "app", None, None)
    assert node.configure(app).state == "CONFIGURED"
    assert node.run(app).state == "RUNNING"
    running = node.get(app)
    assert running.pids == 1
    assert running.pid is not None
    comm = Path(f"/proc/{running.pid}/comm")
    until(lambda: comm.read_text() == "sleep\n", what="the shell becomes sleep")
    assert node.pause(app).state == "PAUSED"
    assert node.resume(app).state == "RUNNING"
    assert node.scale(app, {"pids_max": 40}).state == "RUNNING"
    stopped = node.stop(app)
    assert stopped.state == "CONFIGURED"
    assert (ended(stopped).reason, ended(stopped).signal) == ("stopped", "SIGTERM")
    assert node.clean(app).state == "DEFINED"
    node.undefine(app)
    assert node.list() == []
    with pytest.raises(UnknownInstanceError):
        node.get(app)
    node.gc()
    tag = tag_of(root)
    assert not census.leftovers(before, tag, app)
    assert list((root / "var/lib/nativert/i").iterdir()) == []
    assert list((root / "run/nativert/i").iterdir()) == []


def test_a_root_whose_path_is_longer_than_a_socket_address(
    make_node: Callable[..., Node], tmp_path: Path
) -> None:
    root = tmp_path / ("r" * 120) / ("s" * 60)
    node = make_node(root)
    app = start(node, shell="echo here; exec sleep 1000", veth=True)
    until_logged(node, app, "here")
    assert run_inside(node, app, "pwd") == (0, "/data\n")
    node.stop(app)
    node.clean(app)
    node.undefine(app)


def test_names_prefixes_and_ambiguity(node: Node) -> None:
    rows = [node.define(make_descriptor(name=f"app-{i}", shell="exit")) for i in range(3)]
    assert node.get("app-1").instance == rows[1].instance
    assert node.get(rows[2].instance).name == "app-2"
    assert node.get(rows[2].instance[:12]).name == "app-2"
    heads = [row.instance[0] for row in rows]
    while len(set(heads)) == len(heads):
        heads.append(node.define(make_descriptor(shell="exit"), name=f"n{len(heads)}").instance[0])
    shared = next(head for head in heads if heads.count(head) > 1)
    with pytest.raises(NativertError) as refused:
        node.get(shared)
    assert refused.value.code is Code.AMBIGUOUS
    with pytest.raises(UnknownInstanceError):
        node.get("app-9")
    with pytest.raises(UnknownInstanceError):
        node.get("app")


def test_restart_keeps_the_environment_and_counts(node: Node) -> None:
    app = node.define(make_descriptor(shell="echo GREETING=$GREETING; exec sleep 1000")).instance
    node.configure(app)
    first = node.run(app, env={"GREETING": "hello there"})
    until_logged(node, app, "GREETING=hello there")
    second = node.restart(app)
    assert second.state == "RUNNING"
    assert second.pid != first.pid
    until(lambda: log_text(node, app).count("GREETING=hello there\n") == 2)
    node.stop(app)
    node.run(app)
    until_logged(node, app, "GREETING=\n")


def test_data_and_logs_are_kept_over_runs(node: Node) -> None:
    script = "cat kept 2>/dev/null; echo $RUN >> kept; echo err $RUN >&2"
    app = node.define(make_descriptor(shell=script)).instance
    for run in "123":
        node.configure(app)
        node.run(app, env={"RUN": run})
        node.wait(app, timeout_s=scale.LONG_S)
        node.clean(app)
    assert log_text(node, app, "stdout") == "1\n1\n2\n"
    assert log_text(node, app, "stderr") == "err 1\nerr 2\nerr 3\n"
    lines = list(node.logs(app, tail=2))
    assert {line.text for line in lines} <= {b"2", b"err 3"}
    assert len(lines) == 2
    assert list(node.logs(app, tail=0)) == []
    assert list(node.logs(app, follow=True, tail=1))  # ends at once: nothing runs


def test_following_ends_with_the_application(node: Node) -> None:
    script = "for i in $(seq 20); do echo line $i; sleep 0.01; done; printf 'no newline'"
    app = start(node, shell=script)
    lines = list(node.logs(app, follow=True))
    assert [line.text.decode() for line in lines[:20]] == [f"line {i}" for i in range(1, 21)]
    assert (lines[20].text, lines[20].partial) == (b"no newline", True)
    assert len(lines) == 21


def test_inspect_is_the_record_with_the_true_status(node: Node) -> None:
    app = start(node, shell=SLEEP, veth=True)
    record = node.inspect(app)
    assert record["status"] == "RUN"
    assert record["uuid"] == app
    node.pause(app)
    assert node.inspect(app)["status"] == "PAUSE"
    json.dumps(record)


def test_figures_of_a_running_instance(node: Node) -> None:
    hold = "data = bytearray(30 << 20); print('up'); import time; time.sleep(1000)"
    app = start(node, python=hold, native={"memory": {"max": "100M"}, "pids": {"max": 9}})
    until_logged(node, app, "up")
    figures = node.stats([app])[0]
    assert figures.memory_bytes is not None
    assert 30 * MIB < figures.memory_bytes < 60 * MIB
    assert (figures.memory_max, figures.pids, figures.pids_max) == (100 * MIB, 1, 9)
    assert figures.oom_kills == 0
    assert figures.cpu_ns
    row = node.get(app)
    assert row.uptime_s is not None
    assert 0 < row.uptime_s < 60
    assert [f.instance for f in node.stats()] == [app]
    node.stop(app)
    assert node.stats() == []
    assert node.get(app).memory_bytes is None


def test_operations_of_several_processes_do_not_cross(
    make_node: Callable[..., Node], node: Node
) -> None:
    """Two nodes of one root are two commands at once: one wins, the other is refused."""
    import threading

    app = start(node, shell=SLEEP)
    other = make_node()
    outcomes: list[str] = []

    def stop(by: Node) -> None:
        try:
            outcomes.append(by.stop(app).state)
        except TransitionError as e:
            outcomes.append(f"refused in {e.state}")

    threads = [threading.Thread(target=stop, args=(by,)) for by in (node, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(scale.LONG_S)
    assert sorted(outcomes) == ["CONFIGURED", "refused in CONFIGURED"]
    assert os.path.isdir(f"/proc/{os.getpid()}")
