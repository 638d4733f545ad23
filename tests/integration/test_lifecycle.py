"""The life of an instance from define to undefine, its limits, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import census
import pytest
from nodes import (
    log_text,
    make_descriptor,
    run_inside,
    start,
    tag_of,
    until,
    until_logged,
)

from nativert.errors import Code, NativertError, TransitionError, UnknownInstanceError
from nativert.isolation.cgroups.driver import Cgroup, Driver
from nativert.runtime.node import Node
from nativert.runtime.views import End, Instance

pytestmark = [pytest.mark.root, pytest.mark.netns]

BURN = "import itertools\nfor _ in itertools.count(): pass"
SLEEP = "exec sleep 1000"
MIB = 1 << 20


def ended(row: Instance) -> End:
    """Return the end of a row that has one."""
    assert row.end is not None
    return row.end


def cgroup(node: Node, ref: str) -> Cgroup:
    """Return the cgroup of an instance."""
    driver: Driver = node._context.driver
    return driver.open(f"i-{node.get(ref).instance}")


def share(node: Node, ref: str, window_s: float = 0.4) -> float:
    """Return the cores that the instance gets, measured over a window."""
    before, since = node.stats([ref])[0].cpu_ns, time.monotonic()
    time.sleep(window_s)
    after, now = node.stats([ref])[0].cpu_ns, time.monotonic()
    assert before is not None
    assert after is not None
    return (after - before) / 1e9 / (now - since)


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
    assert not [line for line in census.leftovers(before) if tag in line or app in line]
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


# -- how it ends ---------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_exit_codes(node: Node, code: int) -> None:
    app = start(node, shell=f"exit {code}")
    row = node.wait(app, timeout_s=10)
    assert row.state == "CONFIGURED"
    assert (ended(row).reason, ended(row).exit_code, ended(row).signal) == ("exited", code, None)
    assert ended(row).code == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1])
def test_an_end_by_a_signal(node: Node, number: signal.Signals) -> None:
    app = start(node, shell=f"kill -{number} $$")
    row = node.wait(app, timeout_s=10)
    assert (ended(row).reason, ended(row).signal) == ("signal", number.name)
    assert ended(row).exit_code is None
    assert ended(row).code == 128 + number
    assert not ended(row).oom


def test_the_end_is_noticed_at_once_and_only_once(node: Node) -> None:
    app = start(node, shell="sleep 0.2; exit 6")
    begun = time.monotonic()
    assert ended(node.wait(app)).exit_code == 6
    assert time.monotonic() - begun < 1
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
    end = ended(node.wait(app, timeout_s=10))
    # Nobody asked for a stop.
    assert (end.reason, end.signal) == ("signal", "SIGKILL")


def test_a_memory_limit_too_small_is_an_oom_with_peak_and_limit(node: Node) -> None:
    grow = "data = bytearray(200 << 20); print('never')"
    app = start(node, python=grow, native={"memory": {"max": "32M", "swap": 0}})
    end = ended(node.wait(app, timeout_s=20))
    assert (end.reason, end.oom, end.signal, end.code) == ("oom", True, "SIGKILL", 137)
    assert end.peak_bytes is not None
    assert 30 * MIB <= end.peak_bytes <= 33 * MIB
    assert "limit of 32.0 MiB" in end.message
    assert re.search(r"peak 3[0-3]\.\d MiB", end.message)
    assert "never" not in log_text(node, app)
    # The verdict is of that run alone.
    node.run(app)
    node.kill(app, signal.SIGKILL)
    assert ended(node.wait(app, timeout_s=20)).reason in ("signal", "oom")


def test_an_oom_of_a_child_is_told_too(node: Node) -> None:
    script = "python3 -S -c 'bytearray(200 << 20)'; echo child $?; exit 4"
    app = start(node, shell=script, native={"memory": {"max": "32M", "swap": 0}})
    end = ended(node.wait(app, timeout_s=20))
    assert (end.reason, end.exit_code, end.oom) == ("exited", 4, True)
    assert "OOM killer" in end.message
    assert "child 137" in log_text(node, app)


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
    assert 0.3 <= took_s < 1.3
    assert (end.reason, end.signal) == ("stopped", "SIGKILL")
    assert not cgroup(node, app).populated()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_children_die_with_the_application(node: Node) -> None:
    app = start(node, shell="(setsid sleep 1001 &); sleep 0.2; exit 3")
    until(lambda: len(cgroup(node, app).pids()) >= 2)
    pids = cgroup(node, app).pids()
    assert ended(node.wait(app, timeout_s=10)).exit_code == 3
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
    row = node.wait(app, timeout_s=10)
    assert row.state == "CONFIGURED"
    assert ended(row).signal == "SIGKILL"
    # The next run starts thawed.
    assert node.run(app).state == "RUNNING"
    assert run_inside(node, app, "echo", "alive") == (0, "alive\n")


# -- limits ----------------------------------------------------------------------------------


def test_the_measured_share_follows_the_cpu_limit(node: Node) -> None:
    app = start(node, python=BURN, native={"cpu": {"max": 0.4}})
    until(lambda: 0.3 < share(node, app) < 0.5, what="0.4 cores")
    node.scale(app, {"cpu_max": 0.2})
    until(lambda: 0.13 < share(node, app) < 0.27, what="0.2 cores")
    figures = node.stats([app])[0]
    assert figures.throttled_ns


def test_scale_sets_and_unsets_and_keeps_the_rest(node: Node) -> None:
    native = {"cpu": {"max": 1.5, "weight": 200}, "memory": {"max": "64M"}, "pids": {"max": 20}}
    app = start(node, shell=SLEEP, native=native)
    before = cgroup(node, app).read()
    assert (before.cpu_max, before.memory_max, before.pids_max) == (1.5, 64 * MIB, 20)
    node.scale(app, {"cpu_max": 0.5, "pids_max": 30, "cpuset": "0"})
    after = cgroup(node, app).read()
    assert (after.cpu_max, after.pids_max, after.cpuset) == (0.5, 30, "0")
    assert (after.memory_max, after.cpu_weight) == (64 * MIB, before.cpu_weight)
    node.scale(app, {"cpu_max": None, "memory_max": None})
    freed = cgroup(node, app).read()
    assert (freed.cpu_max, freed.memory_max, freed.pids_max) == (None, None, 30)


def test_limits_of_a_scale_outlive_stop_and_clean(node: Node) -> None:
    app = start(node, shell=SLEEP, native={"pids": {"max": 20}, "memory": {"max": "64M"}})
    node.scale(app, {"pids_max": 33, "memory_max": None})
    node.stop(app)
    node.run(app)
    assert cgroup(node, app).read().pids_max == 33
    node.stop(app)
    node.clean(app)
    node.configure(app)
    limits = cgroup(node, app).read()
    assert (limits.pids_max, limits.memory_max) == (33, None)
    native: Any = node.inspect(app)["native"]
    assert native["limits"]["pids_max"] == 33


def test_scale_below_the_working_set_is_refused(node: Node) -> None:
    hold = "data = bytearray(40 << 20); print('holding'); import time; time.sleep(1000)"
    app = start(node, python=hold, native={"memory": {"max": "100M"}, "pids": {"max": 20}})
    until_logged(node, app, "holding")
    with pytest.raises(NativertError, match="are in use") as refused:
        node.scale(app, {"memory_max": 16 * MIB, "pids_max": 5})
    assert refused.value.code is Code.SCALE
    assert "--force" in refused.value.hint
    limits = cgroup(node, app).read()
    assert (limits.memory_max, limits.pids_max) == (100 * MIB, 20)
    assert node.get(app).state == "RUNNING"


@pytest.mark.cgroup_v1
def test_scale_is_all_or_none_when_the_kernel_refuses_one(node: Node) -> None:
    # On v1 the kernel itself refuses a memory limit that it cannot reclaim down to.
    if Path("/proc/swaps").read_text().count("\n") > 1:
        pytest.skip("with swap the kernel can reclaim")
    hold = "data = bytearray(40 << 20); print('holding'); import time; time.sleep(1000)"
    native = {"memory": {"max": "100M"}, "pids": {"max": 20}, "cpu": {"max": 1}}
    app = start(node, python=hold, native=native)
    until_logged(node, app, "holding")
    before = cgroup(node, app).read()
    change = {"memory_max": 16 * MIB, "pids_max": 5, "cpu_max": 0.5, "cpuset": "0"}
    with pytest.raises(NativertError, match="scale") as refused:
        node.scale(app, change, force=True)
    assert refused.value.code is Code.SCALE
    assert cgroup(node, app).read() == before
    row = node.get(app)
    assert (row.state, row.end) == ("RUNNING", None)
    # What was refused is not what the next configure asks for.
    node.stop(app)
    node.clean(app)
    node.configure(app)
    assert cgroup(node, app).read() == before


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"cpuset": "4095"}, Code.UNENFORCEABLE),
        ({"nonsense": 1}, Code.USAGE),
        ({"pids_max": "many"}, Code.USAGE),
        ({"io": [{"device": "999:99", "rbps": 1 << 20}]}, Code.UNENFORCEABLE),
    ],
)
def test_scale_refuses_what_is_no_limit(node: Node, change: dict[str, object], code: Code) -> None:
    app = start(node, shell=SLEEP, native={"pids": {"max": 20}})
    before = cgroup(node, app).read()
    with pytest.raises(NativertError) as refused:
        node.scale(app, change | {"memory_high": None})
    assert refused.value.code is code
    assert cgroup(node, app).read() == before
    assert node.get(app).state == "RUNNING"


# -- names and runs --------------------------------------------------------------------------


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
        node.wait(app, timeout_s=10)
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
        thread.join(20)
    assert sorted(outcomes) == ["CONFIGURED", "refused in CONFIGURED"]
    assert os.path.isdir(f"/proc/{os.getpid()}")
