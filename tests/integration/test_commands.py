"""Every command of a lifecycle through the real CLI on a real node."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from nodes import driver_of, make_document, tag_of, until

from nativert.isolation.cgroups.driver import LAUNCHER
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_lifecycle_by_commands(node: Node, root: Path, cli: Cli, tmp_path: Path) -> None:
    def do(*args: str, code: int = 0) -> str:
        done = cli(*args)
        assert done.returncode == code, done.stderr
        return done.stdout

    def state() -> str:
        return node.list()[0].state

    script = "trap 'echo usr1' USR1; echo up $WHO; while :; do sleep 0.02; done"
    document = tmp_path / "app.json"
    document.write_text(json.dumps(make_document(shell=script, veth=True)))
    uuid = do("define", str(document), "--name", "first").strip()
    assert state() == "DEFINED"
    do("configure", uuid[:13])
    assert state() == "CONFIGURED"
    do("start", "--env", "WHO=me", "first")
    assert state() == "RUNNING"
    until(lambda: do("logs", "first") == "up me\n")
    do("kill", "-s", "USR1", "first")
    until(lambda: do("logs", "--tail", "1", "first") == "usr1\n")
    do("pause", "first")
    assert state() == "PAUSED"
    do("stop", "first", code=4)
    do("resume", "first")
    do("scale", "first", "--pids", "33", "--memory", "64M", "--cpu", "0.5")
    (figures,) = json.loads(do("stats", "first", "-o", "json"))
    assert (figures["pids_max"], figures["memory_max"]) == (33, 64 << 20)
    do("restart", "first")
    until(lambda: do("logs", "first").count("up me\n") == 2)
    assert json.loads(do("inspect", "first", "-o", "json"))["status"] == "RUN"
    do("kill", "-s", "KILL", "first")
    do("wait", "first")
    assert state() == "CONFIGURED"
    (row,) = json.loads(do("ps", "-a", "-o", "json"))
    assert (row["end"]["signal"], row["end"]["reason"]) == ("SIGKILL", "signal")
    do("start", "first")
    do("stop", "first")
    do("clean", "first")
    assert state() == "DEFINED"
    do("undefine", "first")
    assert json.loads(do("ps", "-a", "-o", "json")) == []
    do("stop", "first", code=3)
    # Launcher and cgroup may have left by themselves: systemd ends a scope that is empty.
    assert f"nrt-{tag_of(root)}" in do("gc")
    assert driver_of(root).open(LAUNCHER).pids() == []
    assert json.loads(do("gc", "-o", "json")) == []


def test_several_instances_all_are_tried_and_the_worst_code_wins(
    node: Node, cli: Cli, tmp_path: Path
) -> None:
    document = tmp_path / "app.json"
    document.write_text(json.dumps(make_document(shell="exec sleep 1000")))
    for name in ("a", "b", "c"):
        assert cli("define", str(document), "--name", name).returncode == 0
    assert cli("configure", "a", "b", "c").returncode == 0
    assert cli("start", "a", "c").returncode == 0
    done = cli("stop", "a", "b", "nonesuch", "c")
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 2
    assert {row.state for row in node.list()} == {"CONFIGURED"}
    done = cli("rm", "a", "b", "c")
    assert (done.returncode, node.list()) == (0, [])


def test_force_removes_what_is_paused(node: Node, cli: Cli, tmp_path: Path) -> None:
    document = tmp_path / "app.json"
    document.write_text(json.dumps(make_document(shell="exec sleep 1000")))
    assert cli("run", "-d", str(document)).returncode == 0
    assert cli("pause", "app").returncode == 0
    refused = cli("rm", "app", "-o", "json")
    assert refused.returncode == 4
    error = json.loads(refused.stderr)["error"]
    assert error["code"] == "refused-transition"
    assert "resume" in error["hint"]
    assert cli("rm", "--force", "app").returncode == 0
    assert node.list() == []
