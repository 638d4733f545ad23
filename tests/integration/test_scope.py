"""The node's scope, where systemd is PID 1: what it survives, and that it goes by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import kernel
import pytest
import scale
from nodes import (
    CLI,
    DEADLINE_S,
    MakeNode,
    driver_of,
    launcher_of,
    make_descriptor,
    make_document,
    start,
    tag_of,
    until,
    until_logged,
)

from nativert.isolation import cgroups
from nativert.isolation.cgroups import scope
from nativert.isolation.cgroups.driver import INIT, LAUNCHER
from nativert.isolation.cgroups.hierarchies import keepers, mounted
from nativert.runtime.context import cgroup_name
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.systemd]

MIB = 1 << 20
LIMITS = {
    "cpu": {"max": 0.5, "weight": 50, "cpuset": "0"},
    "memory": {"max": "64M"},
    "pids": {"max": 33},
}
SLEEP = "exec sleep 999"


def systemctl(*args: str) -> str:
    done = subprocess.run(
        ["systemctl", *args], capture_output=True, text=True, timeout=scale.seconds(90)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def unit_of(root: Path) -> str:
    return f"nativert-{tag_of(root)}.scope"


def show(unit: str, *names: str) -> dict[str, str]:
    lines = systemctl("show", f"--property={','.join(names)}", unit).splitlines()
    return dict(line.split("=", 1) for line in lines)


def there(unit: str) -> bool:
    return show(unit, "LoadState")["LoadState"] == "loaded" or bool(directories(unit))


def directories(unit: str) -> list[Path]:
    """The scope's own directories where systemd keeps its units."""
    roots = keepers(mounted(Path("/sys/fs/cgroup")))
    return [path for root in roots if (path := Path(root, scope.SLICE, unit)).is_dir()]


def pids(path: Path) -> list[int]:
    return [int(line) for line in (path / "cgroup.procs").read_text().split()]


def end_launcher(root: Path) -> None:
    pid = launcher_of(root)
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        until(lambda: driver_of(root).open(LAUNCHER).pids() == [], what="the launcher's end")
    finally:
        os.close(pidfd)


def test_everything_is_in_leaves_of_a_delegated_scope(node: Node, root: Path) -> None:
    app = start(node, shell=SLEEP)
    unit = unit_of(root)
    seen = show(
        unit, "ActiveState", "Slice", "Delegate", "KillMode", "CollectMode", "TasksMax",
        "ControlGroup", "Transient",
    )  # fmt: skip
    assert seen == {
        "ActiveState": "active",
        "Slice": "system.slice",
        "Delegate": "yes",
        "KillMode": "mixed",
        "CollectMode": "inactive-or-failed",
        "TasksMax": "infinity",
        "ControlGroup": f"/system.slice/{unit}",
        "Transient": "yes",
    }
    driver = driver_of(root)
    launcher = launcher_of(root)
    native: Any = node.inspect(app)["native"]
    application = node.get(app).pid
    assert application is not None
    assert driver.open(cgroup_name(app)).pids() == [application]
    if driver.mode != "hybrid":
        assert driver.open(INIT).pids() == [native["init_pid"]]
    for path in directories(unit):
        assert pids(path) == []
        assert launcher in pids(path / LAUNCHER)
        assert application in pids(path / cgroup_name(app))
    # Nothing of ours has stayed behind in whatever started it, in any hierarchy.
    for pid in (launcher, native["init_pid"], application):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            number, controllers, path_ = line.split(":", 2)
            used = number == "0" or set(controllers.split(",")) & {
                *("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "name=systemd"),
                *(() if driver.mode == "hybrid" else ("freezer",)),
            }
            assert not used or path_.startswith(f"/system.slice/{unit}/"), line


@pytest.mark.cgroup_v2
def test_controllers_are_handed_down_by_the_scope_alone(node: Node, root: Path) -> None:
    app = start(node, shell=SLEEP, native=LIMITS)
    (path,) = directories(unit_of(root))
    assert (path / "cgroup.subtree_control").read_text().split() == [
        *("cpuset", "cpu", "io", "memory", "pids")
    ]
    for leaf in (LAUNCHER, INIT, cgroup_name(app)):
        assert (path / leaf / "cgroup.subtree_control").read_text().split() == []


def test_limits_outlive_reload_and_reexec_of_systemd(node: Node, root: Path) -> None:
    app = start(node, shell=SLEEP, native=LIMITS)
    cgroup = driver_of(root).open(cgroup_name(app))
    node.scale(app, {"pids_max": 44})
    before = cgroup.read()
    assert (before.cpu_max, before.memory_max, before.pids_max) == (0.5, 64 * MIB, 44)
    for verb in ("daemon-reload", "daemon-reexec", "daemon-reload"):
        systemctl(verb)
        assert show(unit_of(root), "ActiveState") == {"ActiveState": "active"}
        assert cgroup.read() == before
    # A unit that is started or changed makes systemd write its part of the tree anew.
    systemctl("set-property", "--runtime", "system.slice", "CPUWeight=90")
    try:
        assert cgroup.read() == before
    finally:
        systemctl("set-property", "--runtime", "system.slice", "CPUWeight=")
    assert node.get(app).state == "RUNNING"
    assert node.scale(app, {"pids_max": 55}).state == "RUNNING"
    assert cgroup.read().pids_max == 55
    for path in directories(unit_of(root)):
        assert pids(path) == []


STARTERS = {
    "a service": [],
    "a login session": ["-p", "PAMName=login", "-p", "User=root"],
}


@pytest.mark.parametrize("starter", STARTERS)
def test_instances_outlive_what_started_them(
    node: Node, root: Path, tmp_path: Path, starter: str
) -> None:
    descriptor = tmp_path / "app.json"
    descriptor.write_text(json.dumps(make_document(shell=SLEEP)))
    command = [*CLI, "--root", str(root), "run", "--detach", str(descriptor)]
    # The service ends with the command, and systemd kills what it has left in its cgroup.
    done = subprocess.run(
        [
            *("systemd-run", "--quiet", "--wait", "--pipe", "--collect"),
            *("--property=KillMode=control-group", "--property=SendSIGKILL=yes"),
            *(f"--setenv=PYTHONPATH={os.pathsep.join(sys.path)}", *STARTERS[starter], *command),
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    app = done.stdout.strip()
    running = node.get(app)
    assert running.state == "RUNNING"
    assert running.pid is not None
    assert unit_of(root) in Path(f"/proc/{running.pid}/cgroup").read_text()


def test_the_scope_goes_with_its_last_process_and_comes_again(node: Node, root: Path) -> None:
    unit = unit_of(root)
    assert not there(unit)
    for _ in range(2):
        app = start(node, shell=SLEEP)
        assert there(unit)
        node.remove(app, force=True)
        # What gc ends is the launcher, before it is tired of waiting.
        assert all(found.removed for found in node.gc())
        until(lambda: not there(unit), what="the scope's end")
        assert driver_of(root).names() == ()


def test_a_scope_without_instances_goes_with_its_launcher(node: Node, root: Path) -> None:
    app = start(node, shell=SLEEP)
    node.clean(node.stop(app).instance)
    end_launcher(root)
    # Not waited for: the next configure comes while systemd is still at it, or after it.
    assert node.configure(app).state == "CONFIGURED"
    assert node.run(app).state == "RUNNING"
    assert there(unit_of(root))
    for path in directories(unit_of(root)):
        assert pids(path) == []


def test_a_new_launcher_joins_the_scope_of_living_instances(node: Node, root: Path) -> None:
    first = start(node, shell=SLEEP, name="first")
    before = show(unit_of(root), "InvocationID")
    end_launcher(root)
    second = start(node, shell=SLEEP, name="second")
    assert show(unit_of(root), "InvocationID") == before
    driver = driver_of(root)
    assert launcher_of(root)
    assert set(driver.names()) == {cgroup_name(first), cgroup_name(second)}
    for path in directories(unit_of(root)):
        assert pids(path) == []


def test_stopping_the_scope_ends_all_and_the_records_say_so(node: Node, root: Path) -> None:
    app = start(node, shell=f"trap 'echo term; exit 0' TERM; echo up; {SLEEP} & wait")
    until_logged(node, app, "up")
    systemctl("stop", unit_of(root))
    until(lambda: not there(unit_of(root)), what="the scope's end")
    seen = node.get(app)
    assert seen.state == "DEFINED"
    assert seen.end is not None
    assert seen.end.reason == "init-lost"
    node.configure(app)
    assert node.run(app).state == "RUNNING"


def test_nodes_have_scopes_of_their_own(make_node: MakeNode, root: Path, tmp_path: Path) -> None:
    other_root = tmp_path / "other"
    node, other = make_node(root), make_node(other_root)
    app, twin = start(node, shell=SLEEP), start(other, shell=SLEEP)
    node.remove(app, force=True)
    node.gc()
    until(lambda: not there(unit_of(root)), what="the scope's end")
    assert other.get(twin).state == "RUNNING"
    assert there(unit_of(other_root))


def test_doctor_tells_where_and_why(node: Node, root: Path) -> None:
    (found,) = [check for check in node.doctor() if check.name == "cgroups"]
    assert found.ok
    assert found.detail == (
        f"{kernel.hierarchy()}, in system.slice/{unit_of(root)}: a scope of systemd, which is PID 1"
    )


def test_instances_made_in_a_cgroup_of_their_own_are_kept_there(node: Node, root: Path) -> None:
    # As a node has them that was used before the system bus answered.
    name = f"nativert-{tag_of(root)}"
    driver = cgroups.detect(name)
    driver.prepare()
    try:
        assert scope.choose(name).unit == unit_of(root)
        driver.create("i-1")
        assert scope.choose(name).parent == name
    finally:
        driver.open("i-1").remove()
        driver.destroy()


def test_configuring_in_two_processes_at_once_makes_one_scope(node: Node, root: Path) -> None:
    commands = []
    for number in range(3):
        app = node.define(make_descriptor(shell=SLEEP, name=f"app{number}")).instance
        argv = [*CLI, "--root", str(root), "configure", app]
        commands.append(subprocess.Popen(argv, stderr=subprocess.PIPE, text=True))
    for command in commands:
        _, errors = command.communicate(timeout=DEADLINE_S)
        assert command.returncode == 0, errors
    assert [row.state for row in node.list()] == ["CONFIGURED"] * 3
    assert launcher_of(root)
    for path in directories(unit_of(root)):
        assert pids(path) == []
