"""What waits for another, for a clock or a disk does so in peace, as long as it must."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from nodes import ended, make_descriptor, until
from test_supervision_order import reboot
from test_supervision_restart import QUICK, SLEEP, kinds, of, running, supervised

from nativert.errors import Code, NativertError
from nativert.runtime import run as runs
from nativert.runtime.node import Node
from nativert.runtime.supervision import acts
from nativert.runtime.supervision import supervisor as supervising

pytestmark = [pytest.mark.root, pytest.mark.netns]

ALWAYS = {"restart": {"policy": "always"} | QUICK}


def define(node: Node, name: str, *needs: str, **fields: Any) -> str:
    given = {"shell": SLEEP, "native": ALWAYS} | fields
    return node.define(make_descriptor(name=name, depends_on=list(needs), **given)).instance


def begin(node: Node, *names: str) -> None:
    for name in names:
        node.configure(name)
        node.run(name)


def restart_of(node: Node, ref: str) -> Any:
    native: Any = node.inspect(ref)["native"]
    return native["restart"]


def starts(node: Node, ref: str) -> int:
    return kinds(node, ref).count("started")


def test_a_dependency_that_gave_up_is_not_started_for_another(node: Node, tmp_path: Path) -> None:
    shell = "test -e /data/well && exec sleep 1000; exit 3"
    twice = {"restart": {"policy": "on-failure", "max": 2} | QUICK}
    with supervised(node):
        db = define(node, "db", shell=shell, native=twice)
        web = define(node, "web", "db")
        node.write_file(db, "well", [b""])
        begin(node, db, web)
        well = node.paths.instance_lib(db) / "data" / "well"
        well.unlink()
        first = running(node, web)
        os.kill(running(node, db), signal.SIGKILL)
        os.kill(first, signal.SIGKILL)
        until(lambda: "gave-up" in kinds(node, db), what="db gives up")
        before = (starts(node, db), starts(node, web))
        time.sleep(1.0)
        assert (starts(node, db), starts(node, web)) == before
        assert before[0] == 3
        assert (node.get(db).state, restart_of(node, web)["waits"]) == ("CONFIGURED", True)
        node.write_file(db, "well", [b""])
        node.run(db)
        until(lambda: running(node, web), what="web comes back with it")
        assert running(node, web) != first


def test_what_an_operator_has_stopped_stays_so(node: Node) -> None:
    with supervised(node):
        db = define(node, "db")
        web = define(node, "web", "db")
        begin(node, db, web)
        node.stop(db)
        os.kill(running(node, web), signal.SIGKILL)
        until(lambda: restart_of(node, web)["waits"], what="web waits")
        time.sleep(1.0)
        native: Any = node.inspect(db)["native"]
        assert (native["wanted"], starts(node, db)) == ("CONFIGURED", 1)
        node.run(db)
        until(lambda: running(node, web), what="web comes back with it")


def test_a_dependency_that_is_missing_for_a_while(node: Node) -> None:
    with supervised(node):
        db = define(node, "db")
        web = define(node, "web", "db")
        begin(node, db, web)
        node.remove(db, force=True)
        os.kill(running(node, web), signal.SIGKILL)
        until(lambda: "dependency-failed" in kinds(node, web), what="it is told")
        assert "depends_on names db" in ended(node.get(web)).message
        define(node, "db")
        until(lambda: running(node, web), what="it is there again, and started")
        assert node.get("db").state == "RUNNING"


def test_one_that_ends_each_time_is_started_once_for_each_attempt(node: Node) -> None:
    twice = {"restart": {"policy": "always", "max": 3} | QUICK}
    with supervised(node):
        db = define(node, "db", shell="test -e /data/well && exec sleep 1000; exit 3", native={})
        web = define(node, "web", "db", native=twice)
        node.write_file(db, "well", [b""])
        begin(node, db, web)
        (node.paths.instance_lib(db) / "data" / "well").unlink()
        os.kill(running(node, db), signal.SIGKILL)
        until(lambda: node.get(db).state == "CONFIGURED", what="db has ended")
        os.kill(running(node, web), signal.SIGKILL)
        until(lambda: "gave-up" in kinds(node, web), what="web gives up")
        assert 1 < starts(node, db) <= 4
        assert "its dependency db does not run" in ended(node.get(web)).message


def test_many_that_wait_for_one_leave_room_for_its_health(node: Node) -> None:
    native = {"autostart": True, **ALWAYS}
    health = {"exec": ["test", "-e", "/data/up"], "interval": "100ms", "retries": 100}
    slow = "sleep 1; touch /data/up; exec sleep 1000"
    with supervised(node) as supervisor:
        store = define(node, "store", shell=slow, native=native | {"health": health})
        define(node, "db", "store", native=native)
        apps = [define(node, f"app{n}", "db", native=native) for n in range(12)]
        for app in apps:
            node.configure(app)
            node.run(app)
        supervisor.stop_all()
    (node.paths.instance_lib(store) / "data" / "up").unlink()
    with supervised(node):
        until(lambda: all(running(node, app) for app in apps), what="all run again")
        assert "dependency-failed" not in kinds(node, "db")


def test_a_clock_that_is_set_back_delays_nothing(node: Node) -> None:
    ahead_s = 0.0

    def now() -> float:
        return time.time() + ahead_s

    ahead_s = 3600.0
    with supervised(node, now=now):
        slow = {"restart": {"policy": "always", "backoff": "1s", "backoff_max": "1s"}}
        app = define(node, "app", native=slow)
        begin(node, app)
        os.kill(running(node, app), signal.SIGKILL)
        until(lambda: "restart-planned" in kinds(node, app), what="an attempt is planned")
        ahead_s = 0.0
        until(lambda: starts(node, app) == 2, what="it is started all the same")


def test_a_disk_that_takes_nothing_does_not_make_it_run_and_die_again_and_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run = node.context.store, runs.run
    update, refusing, attempts = store.update, False, 0

    def refuse(*arguments: Any, **changes: Any) -> Any:
        if refusing:
            raise NativertError("no space left; nothing was changed", code=Code.STORE)
        return update(*arguments, **changes)

    def count(*arguments: Any, **options: Any) -> Any:
        nonlocal attempts
        attempts += 1
        return run(*arguments, **options)

    monkeypatch.setattr(store, "update", refuse)
    monkeypatch.setattr(runs, "run", count)
    with supervised(node):
        app = define(node, "app")
        begin(node, app)
        attempts = 0
        os.kill(running(node, app), signal.SIGKILL)
        until(lambda: "restart-planned" in kinds(node, app), what="an attempt is planned")
        refusing = True
        until(lambda: attempts, what="it is tried")
        time.sleep(1.5)
        assert attempts <= 2
        refusing = False
        until(lambda: running(node, app), what="it runs once there is room")


def test_an_init_that_does_not_answer_once_is_asked_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    init, left = node.context.init, 1

    def once(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        if options.get("timeout_s") == 2.0 and left:
            left -= 1
            raise OSError(11, "no room in its queue")
        return init(*arguments, **options)

    monkeypatch.setattr(node.context, "init", once)
    # Nothing else would find the end for an hour.
    with supervised(node, reconcile_s=3600.0) as supervisor:
        app = define(node, "app")
        begin(node, app)
        until(lambda: not left, what="it was refused")
        watched = supervisor._watched[app]
        until(lambda: watched.follow is not None, what="it is followed")
        os.kill(running(node, app), signal.SIGKILL)
        until(lambda: starts(node, app) == 2, what="its end was heard")


def test_the_end_waits_for_no_grace(node: Node) -> None:
    health = {"exec": ["false"], "interval": "100ms", "retries": 1}
    deaf = "trap '' TERM; while :; do sleep 0.1; done"
    fields: Any = {"stop": {"grace": "30s"}, "health": health} | ALWAYS
    with supervised(node) as supervisor:
        app = define(node, "app", shell=deaf, native=fields)
        begin(node, app)
        until(lambda: node.context.lock(app).busy(), what="it is being stopped")
        other = define(node, "other")
        begin(node, other)
        os.kill(running(node, other), signal.SIGKILL)
        until(lambda: starts(node, other) == 2, what="others are attended to meanwhile")
        began = time.monotonic()
        supervisor.close()
        assert time.monotonic() - began < 25.0
    assert of(node, app)
    os.kill(node.look(app).facts.details["pid"], signal.SIGKILL)  # type: ignore[union-attr,arg-type]
    until(lambda: not node.context.lock(app).busy(), what="the stop is over")
    assert not acts.waits(node.context.store.get(other)) or running(node, other)


def test_what_is_started_at_boot_waits_for_a_dependency_that_fails_at_first(
    node: Node, tmp_path: Path
) -> None:
    share = tmp_path / "share"
    share.mkdir()
    mounted = {"mounts": [{"source": str(share), "target": "/share"}]}
    with supervised(node):
        db = define(node, "db", native=mounted)
        web = define(node, "web", "db", native={"autostart": True})
        begin(node, db, web)
    reboot(node)
    share.rmdir()
    with supervised(node):
        until(lambda: "dependency-failed" in kinds(node, web), what="it is told")
        share.mkdir()
        until(lambda: running(node, web), what="it comes up once its dependency can")
    assert kinds(node, web).count("rests") == 0


def test_a_start_that_is_under_way_does_not_outlive_a_stop_of_all(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "_SETTLING_S", 0.1)
    script = {"conf_type": "SCRIPT", "script": "#!/bin/sh\nsleep 2\n"}
    with supervised(node):
        db = define(node, "db", native={"autostart": True}, configuration=script)
        web = define(node, "web", "db", native={"autostart": True})
        begin(node, db, web)
    reboot(node)
    before = (starts(node, db), starts(node, web))
    with supervised(node) as supervisor:
        until(lambda: node.context.lock(db).busy(), what="db is being configured")
        supervisor.stop_all()
    until(lambda: not node.context.lock(db).busy(), what="that is over")
    time.sleep(0.5)
    assert (starts(node, db), starts(node, web)) == before
    assert not {node.get(db).state, node.get(web).state} & {"RUNNING"}


def test_one_that_could_not_be_executed_is_tried_again_for_another(
    node: Node, tmp_path: Path
) -> None:
    program = tmp_path / "bin" / "program"
    program.parent.mkdir()
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    mounts = {"mounts": [{"source": str(program.parent), "target": "/program"}]}
    with supervised(node):
        db = define(node, "db", native={})
        web = define(node, "web", "db")
        begin(node, db, web)
        node.remove(db, force=True)
        define(node, "db", shell=None, binary="/program/program", native=mounts)
        os.kill(running(node, web), signal.SIGKILL)
        until(lambda: kinds(node, web).count("dependency-failed") >= 2, what="it is tried again")
        node.clean("db")
        node.redefine("db", make_descriptor(name="db", shell=SLEEP))
        until(lambda: running(node, web), what="it is mended, and started")
