"""The agent under systemd: instances outlive its end, its upgrade, and what watches it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import scale
import services
from nodes import make_document, until
from services import (
    AGENT,
    SHUTDOWN,
    agent_pid,
    another_agent,
    install,
    journal,
    nativert,
    run,
    unit,
)

from nativert.isolation import process

pytestmark = [pytest.mark.vm, pytest.mark.systemd, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def service() -> Iterator[None]:
    """nativert is installed and serves; at the end nothing of it is left."""
    install()
    yield
    run("/opt/nativert/current/uninstall", "--force", "--purge")
    for left in ("/opt/nativert", "/etc/nativert", "/var/lib/nativert", "/run/nativert"):
        assert not os.path.exists(left), left
    assert not os.path.lexists(services.COMMAND)
    assert unit(AGENT, "LoadState")["LoadState"] == "not-found"
    assert unit(SHUTDOWN, "LoadState")["LoadState"] == "not-found"
    assert [name for name in os.listdir("/sys/class/net") if name.startswith(("nrt-", "nv"))] == []
    assert "nativert" not in run("nft", "list", "ruleset").stdout
    left = ["systemctl", "list-units", "--all", "--no-legend", "nativert-*"]
    until(lambda: run(*left).stdout == "", what="systemd has forgotten it", pause_s=0.5)


@pytest.fixture(scope="module")
def instance(service: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An application that counts, with an interface; its agent has started it."""
    file = tmp_path_factory.mktemp("counter") / "counter.json"
    shell = "n=0; while sleep 0.2; do n=$((n+1)); echo $n; done"
    file.write_text(json.dumps(make_document(name="counter", shell=shell, veth=True)))
    made: str = nativert("run", "-d", str(file))["instance"]
    return made


class Same:
    """The application as it is now, and whether it is still that one."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.pid = int(nativert("inspect", instance)["native"]["pid"])
        self.start = process.start_time(self.pid)
        self.lines = len(self.log())

    def log(self) -> list[str]:
        return run(services.COMMAND, "logs", self.instance).stdout.splitlines()

    def still(self) -> None:
        """The process is the same, is told as RUNNING with its pid, and no line is missing."""
        assert process.start_time(self.pid) == self.start
        (row,) = nativert("ps", "-a")
        assert (row["state"], row["pid"], row["restarts"]) == ("RUNNING", self.pid, 0)
        until(lambda: len(self.log()) > self.lines, what="it goes on to write")
        counted = self.log()
        assert counted == [str(n + 1) for n in range(len(counted))]


def test_it_serves_once_it_is_started(service: None) -> None:
    now = unit(AGENT, "ActiveState", "Type", "NRestarts", "UnitFileState", "WatchdogUSec")
    assert now == {
        "ActiveState": "active",
        "Type": "notify",
        "NRestarts": "0",
        "UnitFileState": "enabled",
        "WatchdogUSec": "30s",
    }
    assert "agent" in run(services.COMMAND, "version").stdout
    for name in (AGENT, SHUTDOWN):
        told = run("systemd-analyze", "verify", f"/etc/systemd/system/{name}", ok=False).stderr
        assert "nativert" not in told


def test_instances_are_in_the_scope_and_the_agent_alone_in_its_service(instance: str) -> None:
    pid = int(nativert("inspect", instance)["native"]["pid"])
    assert "/nativert-agent.service" not in Path(f"/proc/{pid}/cgroup").read_text()
    group = unit(AGENT, "ControlGroup")["ControlGroup"]
    members = Path(f"/sys/fs/cgroup{group}/cgroup.procs")
    alone = [str(agent_pid())]
    # Beside programs that it calls, such as nft.
    until(lambda: members.read_text().split() == alone, what="it is alone in its cgroup")


def test_what_the_service_gives_up_is_no_loss_inside(instance: str) -> None:
    """A program runs beside the application, and the launcher may all that it needs."""
    told = run(services.COMMAND, "exec", instance, "--", "/bin/cat", "/proc/self/status").stdout
    status = dict(line.split(":\t", 1) for line in told.splitlines() if ":\t" in line)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Seccomp_filters"] == "1"
    assert all(check["ok"] or not check["needed"] for check in nativert("doctor"))


def test_the_journal_finds_what_was_said_of_an_instance(instance: str) -> None:
    entries = until(lambda: journal(f"NATIVERT_INSTANCE={instance}"), what="entries", pause_s=0.2)
    assert {entry["_SYSTEMD_UNIT"] for entry in entries} == {AGENT}
    assert {entry["SYSLOG_IDENTIFIER"] for entry in entries} == {"nativert-agent"}
    assert "RUN" in {entry.get("NATIVERT_STATUS") for entry in entries}
    assert journal("NATIVERT_INSTANCE=another") == []


def test_an_agent_that_is_killed_comes_back_to_the_same_instances(instance: str) -> None:
    same, before = Same(instance), agent_pid()
    os.kill(before, signal.SIGKILL)
    another_agent(before)
    same.still()


def test_stopping_the_service_leaves_the_instances(instance: str) -> None:
    same = Same(instance)
    run("systemctl", "stop", AGENT)
    assert agent_pid() == 0
    same.still()
    run("systemctl", "start", AGENT)
    same.still()
    run("systemctl", "restart", AGENT)
    same.still()


def test_the_other_unit_stops_nothing_while_the_host_is_up(instance: str) -> None:
    same = Same(instance)
    run("systemctl", "restart", SHUTDOWN)
    same.still()


def test_an_agent_that_hangs_is_replaced(instance: str) -> None:
    same = Same(instance)
    directory = Path(f"/run/systemd/system/{AGENT}.d")
    directory.mkdir(parents=True)
    watchdog_s = max(5, int(scale.seconds(3)))
    (directory / "watchdog.conf").write_text(f"[Service]\nWatchdogSec={watchdog_s}\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", AGENT)
    before = agent_pid()
    os.kill(before, signal.SIGSTOP)
    another_agent(before)
    assert not Path(f"/proc/{before}").exists()
    told = journal(f"UNIT={AGENT}", "_PID=1")
    assert any("watchdog" in entry["MESSAGE"].lower() for entry in told)
    (directory / "watchdog.conf").unlink()
    directory.rmdir()
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", AGENT)
    same.still()


def test_reload_reads_the_configuration_and_the_agent_stays(instance: str) -> None:
    before = agent_pid()
    run("systemctl", "reload", AGENT)
    until(
        lambda: [e for e in journal(f"_PID={before}") if "reloaded" in e["MESSAGE"]],
        what="the agent tells it",
        pause_s=0.2,
    )
    assert agent_pid() == before


def test_a_second_installation_changes_nothing(instance: str) -> None:
    same, before = Same(instance), agent_pid()
    assert "nothing to do" in install()
    assert agent_pid() == before
    same.still()


def test_an_upgrade_in_place_keeps_the_instances(instance: str) -> None:
    same, before = Same(instance), agent_pid()
    former = services.release_of(before)
    install(version="0.1.1")
    now = agent_pid()
    assert now != before
    assert services.release_of(now) != former
    assert nativert("version")["nativert"] == "0.1.1"
    same.still()
    # What the launcher and the init of before run from stays as long as they do.
    assert former in os.listdir("/opt/nativert/releases")
    # And back again.
    install()
    assert services.release_of(agent_pid()) == former
    same.still()


def test_without_force_nothing_is_removed_under_what_runs(instance: str) -> None:
    same, before = Same(instance), agent_pid()
    refused = run("/opt/nativert/current/uninstall", ok=False)
    assert refused.returncode == 1
    assert "1 instances run" in refused.stderr
    assert agent_pid() == before
    same.still()


def test_a_second_agent_leaves_at_once(instance: str) -> None:
    before = agent_pid()
    done = subprocess.run([services.COMMAND, "agent"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"process {before} serves this node already" in done.stderr
    assert agent_pid() == before
