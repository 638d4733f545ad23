"""A new supervisor takes over what runs: by evidence, at once, and starts nothing again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import scale
from nodes import MakeNode, ended, make_descriptor, start, until

from nativert.runtime.node import Node
from nativert.runtime.supervision.supervisor import Supervisor
from nativert.runtime.views import Event

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"
AGENT = """
import sys, time
from pathlib import Path
from nativert.runtime.node import Node
from nativert.runtime.supervision.supervisor import Supervisor
node = Node(Path(sys.argv[1]))
Supervisor(node).start()
print("up", flush=True)
time.sleep(600)
"""


def events_of(node: Node, ref: str) -> list[Event]:
    return [event for event in node.events(limit=10_000) if event.instance == ref]


def ended_by_itself(node: Node, app: str) -> None:
    until(lambda: events_of(node, app)[-1].kind == "ended", what="the end is told")


def test_a_hundred_are_adopted_in_two_seconds_and_none_is_started_again(node: Node) -> None:
    before = Supervisor(node)
    before.start()
    native = {"restart": {"policy": "always", "backoff": "100ms"}, "network": {"mode": "none"}}
    apps = []
    for number in range(100):
        app = node.define(make_descriptor(name=f"a{number}", shell=SLEEP, native=native)).instance
        node.configure(app)
        node.run(app)
        apps.append(app)
    pids = {app: node.get(app).pid for app in apps}
    before.close()
    os.kill(pids[apps[7]] or 0, signal.SIGKILL)
    cursor = node.latest_event()
    after = before

    def adopted_s() -> float:
        nonlocal after
        after.close()
        begun = time.monotonic()
        after = Supervisor(node)
        after.start()
        until(
            lambda: all(
                (watched := after._watched.get(app)) is not None and watched.follow is not None
                for app in apps
            ),
            what="all are followed",
        )
        return time.monotonic() - begun

    try:
        assert scale.quickest(adopted_s, below_s=scale.seconds(2), times=4) < scale.seconds(2)
        until(lambda: node.get(apps[7]).restarts == 1, what="the ended one is started again")
        told = [event for event in node.events(cursor) if event.instance]
        assert {event.instance for event in told} == {apps[7]}
        assert told[0].kind == "ended"
        assert told[0].data["end"]["signal"] == "SIGKILL"
        assert all(node.get(app).pid == pids[app] for app in apps if app != apps[7])
        os.kill(pids[apps[8]] or 0, signal.SIGKILL)
        until(lambda: node.get(apps[8]).restarts == 1, what="an adopted one is supervised")
    finally:
        after.close()


def test_killed_between_an_edge_and_its_event_it_is_made_up_for(
    make_node: MakeNode, root: Path
) -> None:
    node = make_node()
    app = start(node, shell=SLEEP)
    node.context.store.flush()
    code = (
        "import os, signal, sys; from pathlib import Path; from nativert.runtime.node import Node\n"
        "node = Node(Path(sys.argv[1])); node.pause(sys.argv[2])\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    died = subprocess.run(
        [sys.executable, "-c", code, str(root), app], check=False, timeout=scale.LONG_S
    )
    assert died.returncode == -signal.SIGKILL
    assert [event.kind for event in events_of(node, app)][-1] == "started"
    supervisor = Supervisor(node)
    supervisor.start()
    try:
        until(lambda: events_of(node, app)[-1].kind == "state", what="the state is told")
        made_up = events_of(node, app)[-1].data
        assert made_up == {"state": "PAUSED", "before": "RUNNING", "made_up": True}
        assert node.resume(app).state == "RUNNING"
        assert events_of(node, app)[-1].kind == "resumed"
    finally:
        supervisor.close()


def test_no_event_is_lost_when_the_supervising_process_is_killed(
    make_node: MakeNode, root: Path
) -> None:
    node = make_node()
    app = ""
    for _ in range(2):
        agent = subprocess.Popen(
            [sys.executable, "-c", AGENT, str(root)], stdout=subprocess.PIPE, text=True
        )
        assert agent.stdout is not None
        assert agent.stdout.readline() == "up\n"
        if not app:
            app = start(node, shell="read x")
            ended_by_itself(node, app)
        agent.kill()
        agent.wait()
        agent.stdout.close()
    kinds = [event.kind for event in events_of(node, app)]
    assert kinds == ["defined", "configured", "started", "ended"]
    seqs = [event.seq for event in node.events()]
    assert seqs == sorted(set(seqs))
    assert ended(node.get(app)).exit_code == 1


def test_two_nodes_supervise_their_own_only(make_node: MakeNode, tmp_path: Path) -> None:
    ours, theirs = make_node(), make_node(tmp_path / "other")
    mine = start(ours, shell=SLEEP, veth=True)
    other = start(theirs, shell=SLEEP, veth=True)
    pids = ours.get(mine).pid, theirs.get(other).pid
    supervisors = [Supervisor(node, reconcile_s=0.1) for node in (ours, theirs)]
    for supervisor in supervisors:
        supervisor.start()
    cursor = theirs.latest_event()
    ours.stop(mine)
    ours.remove(mine)
    ours.gc()
    assert not [e for e in theirs.wait_events(cursor, 1.0) if e.kind != "supervision-failed"]
    supervisors[0].stop_all()
    assert theirs.get(other).pid == pids[1]
    supervisors[1].close()
