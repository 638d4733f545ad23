"""How an application ends: by itself, by a signal, out of memory, stopped, paused."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import scale
from nodes import cgroup, ended, log_text, run_inside, start, until, until_logged

from nativert.errors import Code, NativertError, TransitionError
from nativert.runtime.node import Node
from nativert.runtime.views import Instance

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"
MIB = 1 << 20


# -- how it ends ---------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_exit_codes(node: Node, code: int) -> None:
    app = start(node, shell=f"exit {code}")
    row = node.wait(app, timeout_s=scale.LONG_S)
    assert row.state == "CONFIGURED"
    assert (ended(row).reason, ended(row).exit_code, ended(row).signal) == ("exited", code, None)
    assert ended(row).code == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1])
def test_an_end_by_a_signal(node: Node, number: signal.Signals) -> None:
    app = start(node, shell=f"kill -{number} $$")
    row = node.wait(app, timeout_s=scale.LONG_S)
    assert (ended(row).reason, ended(row).signal) == ("signal", number.name)
    assert ended(row).exit_code is None
    assert ended(row).code == 128 + number
    assert not ended(row).oom


def test_the_end_is_noticed_at_once_and_only_once(node: Node) -> None:
    app = start(node, shell="sleep 0.2; exit 6")

    def took_s() -> float:
        begun = time.monotonic()
        assert ended(node.wait(app)).exit_code == 6
        took_s = time.monotonic() - begun
        node.run(app)
        return took_s

    at_once_s = scale.seconds(1)
    assert scale.quickest(took_s, below_s=at_once_s) < at_once_s
    assert ended(node.wait(app)).exit_code == 6
    assert ended(node.get(app)).exit_code == 6
    assert ended(node.wait(app)).exit_code == 6
    assert node.run(app).end is None
    assert node.get(app).state == "RUNNING"


def test_an_end_that_nobody_saw_is_known_to_the_next(
    make_node: Callable[..., Node], node: Node
) -> None:
    app = start(node, shell="exit 9")
    node.close()
    later = make_node()
    row = until(lambda: (r := later.get(app)).state == "CONFIGURED" and r)
    assert isinstance(row, Instance)
    assert ended(row).exit_code == 9


def test_wait_times_out(node: Node) -> None:
    app = start(node, shell=SLEEP)
    with pytest.raises(NativertError, match="still runs") as refused:
        node.wait(app, timeout_s=0.1)
    assert refused.value.code is Code.TIMEOUT
    assert node.get(app).state == "RUNNING"


def test_kill_sends_any_signal(node: Node) -> None:
    app = start(node, shell="trap 'echo got HUP' HUP; echo ready; while :; do sleep 0.05; done")
    until_logged(node, app, "ready")
    node.kill(app, signal.SIGHUP)
    until_logged(node, app, "got HUP")
    assert node.get(app).state == "RUNNING"
    node.kill(app, signal.SIGKILL)
    end = ended(node.wait(app, timeout_s=scale.LONG_S))
    # Nobody asked for a stop.
    assert (end.reason, end.signal) == ("signal", "SIGKILL")


def test_a_memory_limit_too_small_is_an_oom_with_peak_and_limit(node: Node) -> None:
    grow = "data = bytearray(200 << 20); print('never')"
    app = start(node, python=grow, native={"memory": {"max": "32M", "swap": 0}})
    end = ended(node.wait(app, timeout_s=scale.LONG_S))
    assert (end.reason, end.oom, end.signal, end.code) == ("oom", True, "SIGKILL", 137)
    assert end.peak_bytes is not None
    assert 30 * MIB <= end.peak_bytes <= 33 * MIB
    assert "limit of 32.0 MiB" in end.message
    assert re.search(r"peak 3[0-3]\.\d MiB", end.message)
    assert "never" not in log_text(node, app)
    # The verdict is of that run alone.
    node.run(app)
    node.kill(app, signal.SIGKILL)
    assert ended(node.wait(app, timeout_s=scale.LONG_S)).reason in ("signal", "oom")


CHILD_GROWS = "python3 -S -c 'bytearray(200 << 20)'; echo child $?; exit 4"


@pytest.mark.cgroup_v1
def test_an_oom_of_a_child_is_told_too(node: Node) -> None:
    app = start(node, shell=CHILD_GROWS, native={"memory": {"max": "32M", "swap": 0}})
    end = ended(node.wait(app, timeout_s=scale.LONG_S))
    assert (end.reason, end.exit_code, end.oom) == ("exited", 4, True)
    assert "OOM killer" in end.message
    assert "child 137" in log_text(node, app)


@pytest.mark.cgroup_v2
def test_an_oom_of_a_child_ends_the_application(node: Node) -> None:
    app = start(node, shell=CHILD_GROWS, native={"memory": {"max": "32M", "swap": 0}})
    end = ended(node.wait(app, timeout_s=scale.LONG_S))
    assert (end.reason, end.oom, end.signal, end.code) == ("oom", True, "SIGKILL", 137)
    assert "child" not in log_text(node, app)


# -- stop ------------------------------------------------------------------------------------


def test_stop_signal_of_the_descriptor(node: Node) -> None:
    script = "trap 'echo usr2; exit 5' USR2; echo ready; while :; do sleep 0.05; done"
    app = start(node, shell=script, native={"stop": {"signal": "SIGUSR2"}})
    until_logged(node, app, "ready")
    end = ended(node.stop(app))
    assert (end.reason, end.exit_code) == ("stopped", 5)
    assert "usr2" in log_text(node, app)


def test_stop_kills_what_ignores_it_and_what_went_away(node: Node) -> None:
    # One ignores TERM, one double-forks into a session of its own and ignores it too.
    script = (
        "trap '' TERM INT HUP; (setsid sh -c 'sleep 1001 & sleep 1002' &) ; "
        "echo ready; sleep 1003; sleep 1004; sleep 1005"
    )
    app = start(node, shell=script, native={"stop": {"grace": "300ms"}})
    until_logged(node, app, "ready")
    until(lambda: node.get(app).pids == 5)
    pids = cgroup(node, app).pids()
    begun = time.monotonic()
    end = ended(node.stop(app))
    took_s = time.monotonic() - begun
    # Well below what a stop waits for the end of what it has killed.
    assert 0.3 <= took_s < scale.seconds(8)
    assert (end.reason, end.signal, end.timed_out) == ("stop-timeout", "SIGKILL", True)
    assert not cgroup(node, app).populated()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_children_die_with_the_application(node: Node) -> None:
    app = start(node, shell="(setsid sleep 1001 &); until [ -e go ]; do sleep 0.02; done; exit 3")
    until(lambda: len(cgroup(node, app).pids()) >= 2)
    pids = cgroup(node, app).pids()
    (node._context.paths.instance_lib(app) / "data/go").touch()
    assert ended(node.wait(app, timeout_s=scale.LONG_S)).exit_code == 3
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert node.get(app).state == "CONFIGURED"


def test_a_paused_instance_is_removed_by_force_only(node: Node) -> None:
    app = start(node, shell=SLEEP, veth=True)
    node.pause(app)
    for refuse in (node.remove, node.stop):
        with pytest.raises(TransitionError) as refused:
            refuse(app)
        assert refused.value.allowed == ("resume",)
        assert node.get(app).state == "PAUSED"
    pids = cgroup(node, app).pids()
    node.remove(app, force=True)
    assert node.list() == []
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_killed_while_frozen(node: Node) -> None:
    app = start(node, shell=SLEEP)
    node.pause(app)
    node.kill(app, signal.SIGKILL)
    row = node.wait(app, timeout_s=scale.LONG_S)
    assert row.state == "CONFIGURED"
    assert ended(row).signal == "SIGKILL"
    # The next run starts thawed.
    assert node.run(app).state == "RUNNING"
    assert run_inside(node, app, "echo", "alive") == (0, "alive\n")
