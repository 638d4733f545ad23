"""Verdicts from what init itself counts: signals it was asked for, refused forks, OOM events."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import scale
from nodes import MakeNode, start, until, until_logged

from nativert.runtime import diagnosis_run
from nativert.runtime.node import Node
from nativert.runtime.views import End
from nativert.store import boot

pytestmark = [pytest.mark.root, pytest.mark.netns]

Cli = Callable[..., Any]
SLEEP = "exec sleep 1000"
GROW = "data = bytearray(200 << 20)"
# Forks until it is refused, and exits with what it has learned.
FORKS = """
import os, time
refused = 0
for _ in range(40):
    try:
        if os.fork() == 0:
            time.sleep(1000)
    except BlockingIOError:
        refused += 1
os._exit(3 if refused else 0)
"""


def told(cli: Cli, ref: str) -> End:
    """Return the verdict as a process tells it that saw nothing of the end."""

    def look() -> Any:
        native = json.loads(cli("inspect", ref, "-o", "json").stdout)["native"]
        return native["state"] == "CONFIGURED" and native["end"]

    return msgspec.convert(until(look, deadline_s=scale.LONG_S), End)


def exit_facts(node: Node, ref: str) -> boot.ExitFacts:
    facts = boot.read_exit(node._context.paths, ref)
    assert facts is not None
    return facts


# -- asked ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_signal_that_kill_has_sent(node: Node, cli: Cli, number: signal.Signals) -> None:
    app = start(node, shell=SLEEP)
    assert cli("kill", "-s", str(int(number)), app).returncode == 0
    end = told(cli, app)
    assert (end.reason, end.signal, end.sender) == ("signal", number.name, "kill")
    assert end.message == f"ended by {number.name}, which `kill` had sent"
    asked = exit_facts(node, app).asked
    assert asked is not None
    assert asked.signal == number
    assert end.started_at is not None
    assert end.ended_at is not None
    assert end.started_at <= asked.at <= end.ended_at


def test_another_signal_than_the_one_that_kill_has_sent(node: Node, cli: Cli) -> None:
    app = start(node, shell="trap 'kill -KILL $$' HUP; echo ready; while :; do sleep 0.05; done")
    until_logged(node, app, "ready")
    cli("kill", "-s", "HUP", app)
    end = told(cli, app)
    assert (end.signal, end.sender, end.message) == ("SIGKILL", None, "ended by SIGKILL")


def test_what_an_earlier_run_was_sent_is_not_this_ones(node: Node, cli: Cli) -> None:
    app = start(node, shell="trap : HUP; echo ready; while :; do sleep 0.05; done")
    until_logged(node, app, "ready")
    cli("kill", "-s", "HUP", app)
    node.stop(app)
    assert exit_facts(node, app).asked is not None
    short = start(node, name="short", shell="kill -HUP $$")
    assert told(cli, short).sender is None
    assert exit_facts(node, short).asked is None
    node.remove(app, force=True)


def test_a_signal_of_seccomp_that_kill_has_sent(node: Node, cli: Cli) -> None:
    app = start(node, shell=SLEEP)
    cli("kill", "-s", "SYS", app)
    end = told(cli, app)
    assert (end.reason, end.message) == ("signal", "ended by SIGSYS, which `kill` had sent")


# -- pids ----------------------------------------------------------------------------------


def test_its_pids_limit(node: Node, cli: Cli) -> None:
    app = start(node, python=FORKS, native={"pids": {"max": 8}})
    end = told(cli, app)
    assert (end.reason, end.exit_code, end.pids_max) == ("exited", 3, 8)
    assert end.pids_refused is not None
    assert end.pids_refused > 0
    assert "exited with code 3; its pids limit of 8 had refused it a process" in end.message


def test_refusals_are_those_of_this_run(node: Node, cli: Cli) -> None:
    app = start(node, python=FORKS, native={"pids": {"max": 8}})
    first = told(cli, app).pids_refused
    assert first
    node.run(app)
    assert told(cli, app).pids_refused == first
    well = start(node, name="well", shell="exit 3", native={"pids": {"max": 8}})
    assert told(cli, well).pids_refused is None
    assert exit_facts(node, well).pids_events == 0


# -- memory --------------------------------------------------------------------------------


@pytest.mark.cgroup_v2
def test_its_own_memory_limit_without_the_kernels_log(
    node: Node, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis_run.kernel, "records", lambda since: [])
    app = start(node, python=GROW, native={"memory": {"max": "32M", "swap": 0}})
    node.close()
    with make_node() as later:
        end = until(lambda: later.get(app).end)
        assert (end.reason, end.oom_by) == ("oom", "limit")
        assert (exit_facts(later, app).oom_events or 0) > 0


@pytest.mark.cgroup_v1
def test_on_v1_init_claims_nothing_about_whose_memory(
    node: Node, make_node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis_run.kernel, "records", lambda since: [])
    app = start(node, python=GROW, native={"memory": {"max": "32M", "swap": 0}})
    node.close()
    with make_node() as later:
        end = until(lambda: later.get(app).end)
        assert (end.reason, end.oom_by) == ("oom", None)
        assert end.message.startswith("killed by the OOM killer, peak")
        assert exit_facts(later, app).oom_events is None
