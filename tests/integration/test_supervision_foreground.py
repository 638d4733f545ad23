"""`nativert run` without an agent is there for its own instance."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nodes import CLI, DEADLINE_S, make_descriptor, make_document, until

from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

Cli = Callable[..., subprocess.CompletedProcess[str]]
RESTART = {"policy": "on-failure", "max": 2, "backoff": "100ms"}
# Fails twice, then succeeds: /data outlives the attempts.
THIRD = "echo x >> tries; n=$(wc -l < tries); echo try $n; test $n -ge 3 || exit 9"


def write(path: Path, **fields: Any) -> str:
    file = path / "app.json"
    file.write_text(json.dumps(make_document(**fields)))
    return str(file)


def test_it_answers_after_the_last_attempt(cli: Cli, tmp_path: Path, node: Node) -> None:
    done = cli("run", write(tmp_path, shell=THIRD, native={"restart": RESTART}))
    assert (done.returncode, done.stdout.split("\n")) == (0, ["try 1", "try 2", "try 3", ""])
    done = cli("run", write(tmp_path, shell="echo at it; exit 9", native={"restart": RESTART}))
    assert (done.returncode, done.stdout) == (9, "at it\n" * 3)
    assert node.list() == []


def test_a_signal_ends_it_between_two_attempts(tmp_path: Path, node: Node, root: Path) -> None:
    slow = {"policy": "always", "backoff": "1m"}
    path = write(tmp_path, shell="exit 3", native={"restart": slow})
    run = subprocess.Popen([*CLI, "run", path], env=os.environ | {"NATIVERT_ROOT": str(root)})
    until(
        lambda: any(event.kind == "restart-planned" for event in node.events()),
        what="an attempt is planned",
    )
    run.send_signal(signal.SIGTERM)
    assert run.wait(DEADLINE_S) == 3
    assert node.list() == []


def test_a_signal_ends_the_wait_for_what_it_depends_on(
    tmp_path: Path, node: Node, root: Path
) -> None:
    never = {"exec": ["false"], "interval": "100ms", "start_period": "1h"}
    db = node.define(
        make_descriptor(name="db", shell="exec sleep 1000", native={"health": never})
    ).instance
    path = write(tmp_path, shell="echo up", depends_on=["db"])
    run = subprocess.Popen(
        [*CLI, "run", path],
        env=os.environ | {"NATIVERT_ROOT": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until(lambda: node.get(db).state == "RUNNING", what="what it depends on runs")
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=DEADLINE_S)
    assert (run.returncode, out) == (128 + signal.SIGTERM, b"")
    assert err == b"nativert: interrupted by SIGTERM\n"
    assert [row.instance for row in node.list()] == [db]


def test_detached_it_is_refused(cli: Cli, tmp_path: Path, node: Node) -> None:
    path = write(tmp_path, shell="sleep 9", native={"restart": RESTART})
    done = cli("run", "-d", path)
    assert done.returncode == 5
    assert "nativert agent" in done.stderr
    assert node.list() == []
    cli("define", path)
    cli("configure", "app")
    done = cli("-o", "json", "start", "app")
    assert done.returncode == 5
    assert json.loads(done.stderr)["error"]["code"] == "no-agent"
