"""An instance moves from one node to another, with its data, its name and its environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from aftermath import assert_nothing_left
from movers import APP, QUICK, Pair, Served, read
from nodes import make_descriptor, run_inside, start, until

from nativert.errors import Code, NativertError
from nativert.isolation.criu import program
from nativert.runtime.migration.messages import Kind, Message
from nativert.runtime.migration.source import Mover

pytestmark = [pytest.mark.root, pytest.mark.netns]


def test_an_instance_moves_with_all_that_it_has(pair: Pair) -> None:
    here, there = pair.here, pair.there
    uuid = here.define(make_descriptor(name="mover", shell=APP, veth=True), name="my-own").instance
    here.configure(uuid)
    here.run(uuid, env={"COLOUR": "green"})
    here.scale(uuid, {"memory_max": 96 << 20})
    made = "mkdir -p /data/a/b; echo deep > /data/a/b/c; ln -s c /data/a/b/link; mkfifo /data/pipe"
    assert run_inside(here, uuid, "sh", "-c", f"{made}; chmod 640 /data/a/b/c")[0] == 0
    before = here.get(uuid)

    told = pair.move(uuid)

    row = there.get(uuid)
    assert (row.state, row.name, row.fdu) == ("RUNNING", "my-own", before.fdu)
    assert told["state"] == "RUNNING"
    assert told["node"] == row.node
    assert told["addresses"]["eth0"] != ""
    assert here.list() == []
    assert_nothing_left(here, here.paths.root or Path("/"), uuid)
    assert not here.paths.instance_lib(uuid).exists()
    until(lambda: read(there, uuid, "runs") == "run\nrun\n", what="the second run")
    assert read(there, uuid, "a/b/c") == "deep\n"
    assert run_inside(there, uuid, "sh", "-c", "cat /data/a/b/link; stat -c %a%F /data/a/b/c")[
        1
    ] == ("deep\n640regular file\n")
    assert (
        run_inside(there, uuid, "sh", "-c", "echo more >> /data/a/b/c; test -p /data/pipe")[0] == 0
    )
    environment = Path(f"/proc/{row.pid}/environ").read_bytes().split(b"\0")
    assert b"COLOUR=green" in environment
    assert there.stats([uuid])[0].memory_max == 96 << 20
    assert not (there.paths.instance_lib(uuid) / "incoming").exists()


def test_it_comes_back_and_goes_again(pair: Pair) -> None:
    uuid = start(pair.here, name="mover", shell=APP)
    for back in (False, True, False):
        pair.move(uuid, back=back)
        at = pair.here if back else pair.there
        assert at.get(uuid).state == "RUNNING"
        assert len(pair.copies(uuid)) == 1
    until(lambda: read(pair.there, uuid, "runs") == "run\n" * 4, what="the fourth run")
    kinds = [event.kind for event in pair.here.events() if event.instance == uuid]
    assert [
        kind
        for kind in kinds
        if kind in ("migrating", "taking-off", "landing", "landed", "migrated")
    ] == [
        "migrating",
        "taking-off",
        "migrated",
        "migrating",
        "landing",
        "landed",
        "migrating",
        "taking-off",
        "migrated",
    ]


def test_more_data_than_fits_into_a_piece_arrives_in_pieces(pair: Pair) -> None:
    uuid = start(pair.here, name="mover", shell=APP)
    block = os.urandom(1 << 20)
    data = pair.here.paths.instance_lib(uuid) / "data"
    (data / "big").write_bytes(block * 20)
    told: list[tuple[int, int | None]] = []
    mover = Mover(pair.here, pair.wire, patience=QUICK)
    mover.migrate(uuid, pair.ids[pair.there], progress=lambda *of: told.append(of))
    assert (pair.there.paths.instance_lib(uuid) / "data/big").read_bytes() == block * 20
    assert len(told) > 50
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]


def test_what_the_destination_refuses_stays_and_runs(pair: Pair) -> None:
    pair.there.define(make_descriptor(name="mover", shell=APP))
    uuid = start(pair.here, name="mover", shell=APP)
    pid = pair.here.get(uuid).pid
    with pytest.raises(NativertError, match="the name mover is taken") as refused:
        pair.move(uuid)
    assert refused.value.code is Code.MIGRATE
    row = pair.here.get(uuid)
    assert (row.state, row.pid) == ("RUNNING", pid)
    assert [copy.instance for copy in pair.copies(uuid)] == [uuid]


def test_nobody_at_the_other_node(pair: Pair) -> None:
    uuid = start(pair.here, name="mover", shell=APP)
    pid = pair.here.get(uuid).pid
    pair.served[pair.there].close()
    with pytest.raises(NativertError, match="nobody answers") as refused:
        pair.move(uuid)
    assert refused.value.code is Code.TIMEOUT
    assert pair.here.get(uuid).pid == pid
    pair.served[pair.there] = Served(pair.there)
    pair.move(uuid)
    assert pair.there.get(uuid).state == "RUNNING"


def test_holes_arrive_as_holes(pair: Pair) -> None:
    uuid = start(pair.here, name="mover", shell=APP)
    made = "truncate -s 1T /data/holes; printf begin | dd of=/data/holes conv=notrunc 2>/dev/null"
    assert run_inside(pair.here, uuid, "sh", "-c", made)[0] == 0
    pair.move(uuid)
    there = pair.there.paths.instance_lib(uuid) / "data" / "holes"
    status = there.stat()
    assert (status.st_size, status.st_blocks < 1024) == (1 << 40, True)
    with there.open("rb") as file:
        assert file.read(10) == b"begin" + bytes(5)


def test_what_a_script_leaves_running_is_gone_before_the_data_come(pair: Pair) -> None:
    # It would have all the time that unpacking takes to put links in the place of what is made.
    script = "#!/bin/sh\n(while :; do date > /data/by-the-script; done) >/dev/null 2>&1 &\n"
    configuration = {"conf_type": "SCRIPT", "script": script}
    uuid = start(pair.here, name="mover", shell=APP, configuration=configuration)
    at_source = pair.here.paths.instance_lib(uuid) / "data" / "by-the-script"
    until(at_source.exists, what="it writes")
    pair.move(uuid)
    data = pair.there.paths.instance_lib(uuid) / "data"
    (data / "by-the-script").unlink(missing_ok=True)
    until(lambda: read(pair.there, uuid, "runs") == "run\nrun\n", what="the second run")
    assert not (data / "by-the-script").exists()


def test_a_script_that_does_not_end_ends_the_move(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nativert.runtime.migration.destination._SCRIPT_S", 0.5)
    # Only where it lands: this one's first configure finds no file, the other's waits for ever.
    script = "#!/bin/sh\ntest -e /host/again && exec sleep 1000; exit 0\n"
    share = pair.here.paths.lib.parent / "share"
    share.mkdir()
    native = {"mounts": [{"source": str(share), "target": "/host"}]}
    configuration = {"conf_type": "SCRIPT", "script": script}
    uuid = start(pair.here, name="mover", shell=APP, native=native, configuration=configuration)
    (share / "again").touch()
    with pytest.raises(NativertError, match=r"configuration\.script has not ended after 0\.5 s"):
        pair.move(uuid)
    assert pair.here.get(uuid).state == "RUNNING"
    assert pair.there.list() == []
    assert_nothing_left(pair.there, pair.there.paths.root or Path("/"), uuid)


def test_data_that_are_changed_on_the_way_are_refused(pair: Pair) -> None:
    uuid = start(pair.here, name="mover", shell=APP)

    def spoil(message: Message, deliver: Any) -> Message:
        if message.kind is Kind.CHUNK:
            payload = message.payload[:-1] + bytes([message.payload[-1] ^ 1])
            return deliver(_with(message, payload))
        return deliver(message)

    pair.wire.fault = spoil
    with pytest.raises(NativertError, match="not those that were sent"):
        pair.move(uuid)
    assert pair.here.get(uuid).state == "RUNNING"
    assert pair.there.list() == []
    until(lambda: read(pair.here, uuid, "runs") == "run\nrun\n", what="the second run")


def test_what_cannot_be_started_there_is_given_back(pair: Pair, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.mkdir(mode=0o755)
    program = shown / "program"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    mounts = [{"source": str(shown), "target": "/program"}]
    uuid = start(pair.here, name="mover", binary="/program/program", native={"mounts": mounts})

    def fail(message: Message, deliver: Any) -> Message:
        if message.kind is Kind.COMMIT:
            program.chmod(0o644)
        answer = deliver(message)
        program.chmod(0o755)
        return answer

    pair.wire.fault = fail
    with pytest.raises(NativertError, match="cannot be started there"):
        pair.move(uuid)
    assert pair.here.get(uuid).state == "RUNNING"
    assert pair.there.list() == []
    pair.wire.fault = None
    pair.move(uuid)
    assert pair.there.get(uuid).state == "RUNNING"


def test_a_copy_on_its_way_can_be_given_up_by_force(pair: Pair) -> None:
    uuid = start(pair.here, name="mover", shell=APP)

    def cut(message: Message, deliver: Any) -> Message:
        if message.kind is Kind.COMMIT:
            raise NativertError("cut off", code=Code.TIMEOUT)
        return deliver(message)

    pair.wire.fault = cut
    with pytest.raises(NativertError, match="does not say that it runs") as late:
        pair.move(uuid)
    assert late.value.code is Code.TIMEOUT
    states = [node.get(uuid).state for node in (pair.here, pair.there)]
    assert states == ["TAKE_OFF", "LANDING"]
    for refused in (pair.here.stop, pair.here.undefine, pair.there.run, pair.there.remove):
        with pytest.raises(NativertError, match=r"TAKE_OFF|LANDING") as kept:
            refused(uuid)
        assert kept.value.code is Code.TRANSITION
    pair.here.remove(uuid, force=True)
    pair.there.remove(uuid, force=True)
    assert pair.copies(uuid) == []
    for node in (pair.here, pair.there):
        assert_nothing_left(node, node.paths.root or Path("/"), uuid)
        assert not node.paths.instance_lib(uuid).exists()


def _with(message: Message, payload: bytes) -> Message:
    import msgspec

    return msgspec.structs.replace(message, payload=payload)


def test_a_process_is_not_moved_where_criu_is_not(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uuid = start(pair.here, name="mover", shell=APP, migration_kind="LIVE")
    before = pair.here.get(uuid)
    monkeypatch.setattr(program, "_PATH", str(tmp_path))
    with pytest.raises(NativertError, match=r"stays on this node: .* criu is not installed") as e:
        pair.move(uuid)
    assert (e.value.code, e.value.hint) == (Code.MIGRATE, "on Debian: apt-get install criu")
    assert (pair.here.get(uuid).state, pair.here.get(uuid).pid) == ("RUNNING", before.pid)
    assert read(pair.here, uuid, "runs") == "run\n"
    assert pair.there.list() == []


def test_a_process_is_not_moved_where_criu_is_not_content(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = "Error (criu/cr-check.c:613): Kernel doesn't support it"
    text = f"""#!/bin/sh
[ "$1" = check ] || exec echo "Version: 3.17.1"
echo "{said}"
exit 1
"""
    (tmp_path / "criu").write_text(text)
    (tmp_path / "criu").chmod(0o755)
    uuid = start(pair.here, name="mover", shell=APP, migration_kind="LIVE")
    monkeypatch.setattr(program, "_PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(NativertError, match="criu check says: Kernel doesn't support it"):
        pair.move(uuid)
    assert pair.here.get(uuid).state == "RUNNING"
    assert pair.there.list() == []
