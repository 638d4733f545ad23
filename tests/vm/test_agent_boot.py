"""The host shuts down and boots: told as such, and run again what asks for it.

`scripts/vm-test --reboot` calls this file once in each boot.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import services
from nodes import make_document, until
from services import AGENT, SHUTDOWN, install, nativert, run, unit

pytestmark = [pytest.mark.vm, pytest.mark.systemd, pytest.mark.timeout(600)]

# The names of the tests that have passed, over all boots: a reboot ends a session unjudged.
PASSED = Path("/root/passed")
# It leaves a sign that it was asked to end, and takes its time.
POLITE = (
    "trap 'echo asked; sleep 1; echo asked > /data/sign; exit 0' TERM;"
    " echo up >> /data/starts; while sleep 0.1; do :; done"
)


def passed(name: str) -> None:
    """Note that a test has come to its end, for the last boot."""
    with PASSED.open("a") as file:
        file.write(f"{name}\n")


def states() -> dict[str, tuple[str, str | None]]:
    return {
        row["name"]: (row["state"], row["end"] and row["end"]["reason"])
        for row in nativert("ps", "-a")
    }


def data_of(name: str) -> Path:
    uuid = nativert("inspect", name)["native"]["instance"]
    return Path(f"/var/lib/nativert/i/{uuid}/data")


def define(name: str, **native: object) -> None:
    file = Path(f"/root/{name}.json")
    document = make_document(name=name, shell=POLITE, native={"stop": {"grace": "20s"}, **native})
    file.write_text(json.dumps(document))
    run(services.COMMAND, "run", "-d", str(file))


@pytest.mark.reboot(1)
def test_instances_run_when_the_host_is_rebooted() -> None:
    install()
    define("again", autostart=True)
    define("once")
    define("stopped", autostart=True)
    define("frozen", autostart=True)
    for name in ("again", "once", "stopped", "frozen"):
        until(lambda name=name: (data_of(name) / "starts").exists(), what="it is up", pause_s=0.2)
    run(services.COMMAND, "stop", "stopped")
    run(services.COMMAND, "pause", "frozen")
    passed("first")
    services.going_down()


@pytest.mark.reboot(2)
def test_each_was_asked_to_end_and_the_end_is_told() -> None:
    until(
        lambda: unit(AGENT, "ActiveState")["ActiveState"] == "active",
        what="the agent serves",
        deadline_s=services.START_S,
        pause_s=0.5,
    )
    for name in ("again", "once", "frozen"):
        assert (data_of(name) / "sign").read_text() == "asked\n"
    assert states()["once"] == ("DEFINED", "node-shutdown")
    kinds = [event for event in nativert_events() if event["name"] == "again"]
    ends = [event["data"]["end"]["reason"] for event in kinds if event["kind"] == "ended"]
    assert ends == ["node-shutdown"]
    passed("told")


@pytest.mark.reboot(2)
def test_what_was_wanted_running_and_starts_by_itself_runs() -> None:
    def up() -> bool:
        return all(states()[name][0] == "RUNNING" for name in ("again", "frozen"))

    until(up, what="they run again", deadline_s=services.START_S, pause_s=0.5)
    assert (data_of("again") / "starts").read_text() == "up\nup\n"
    assert states()["stopped"][0] == "DEFINED"
    assert states()["once"][0] == "DEFINED"
    passed("again")


@pytest.mark.reboot(2)
def test_the_same_without_an_agent_at_the_end() -> None:
    """Who stops the instances is the other unit, which needs no agent."""
    run("systemctl", "stop", AGENT)
    assert states()["again"][0] == "RUNNING"
    (data_of("again") / "sign").unlink()
    assert unit(SHUTDOWN, "ActiveState")["ActiveState"] == "active"
    passed("alone")
    services.going_down()


@pytest.mark.reboot(3)
def test_it_was_asked_to_end_all_the_same() -> None:
    assert PASSED.read_text().split() == ["first", "told", "again", "alone"]
    sign = data_of("again") / "sign"
    assert sign.read_text() == "asked\n"
    until(
        lambda: states()["again"][0] == "RUNNING",
        what="it runs again",
        deadline_s=services.START_S,
        pause_s=0.5,
    )


@pytest.mark.reboot(3)
def test_nothing_is_left_after_it_is_removed() -> None:
    run("/opt/nativert/current/uninstall", "--force", "--purge")
    assert not Path("/var/lib/nativert").exists()


def nativert_events() -> list[dict[str, object]]:
    return [
        json.loads(line)
        for line in run(services.COMMAND, "-o", "json", "events").stdout.splitlines()
    ]
