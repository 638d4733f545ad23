"""A node's state in one file, and back: whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nodes import MakeNode, make_descriptor, run_inside, start, tag_of, until

from nativert.errors import NativertError
from nativert.runtime import restore as restoring
from nativert.runtime import virtual_networks
from nativert.runtime.backup import save
from nativert.runtime.backup_archive import opened, verify
from nativert.runtime.node import Node
from nativert.runtime.restore import restore
from nativert.store.catalog import Entry
from nativert.store.claims import Claims
from nativert.store.locks import NodeLock
from nativert.store.paths import Paths
from nativert.store.pools import RANGE_IDS
from nativert.store.registry import NodeFile

pytestmark = [pytest.mark.root, pytest.mark.netns]

Cli = Callable[..., subprocess.CompletedProcess[str]]
# Functions of restore.py that are called at its steps, and how often together in one restore of a
# node over another state of itself.
STEPS = ("_move", "_without_foreign", "_moved_blocks", "_move_ranges")
STEPS_TAKEN = 12
NETWORK = "6cc2aa30-1dcf-4c93-a57e-433fd0bd498e"
WRITE = "echo kept > /data/file; mkdir -p /data/deep; ln -s /etc/hostname /data/deep/link; echo up"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "node.backup"


def rows(node: Node) -> list[tuple[str, str, str]]:
    return [(row.instance, row.name, row.state) for row in node.list()]


def lose(root: Path) -> None:
    """The machine is another one: nothing of the node is known here."""
    claims = Claims()
    claims.release_node(json.loads(Paths(root).node.read_text())["id"])
    shutil.rmtree(root)


def range_of(node: Node, ref: str) -> int:
    return node.context.store.find(ref).id_range


def test_a_lost_node_comes_back_with_its_data(
    root: Path, make_node: MakeNode, file: Path, cli: Cli
) -> None:
    paths = Paths(root)
    with Node(root) as node:
        instance = start(node, name="keeper", shell=WRITE, veth=True)
        node.wait(instance, timeout_s=60)
        node.define(make_descriptor(name="second"))
        before = node.inspect(instance)
        owner = os.lstat(paths.instance_lib(instance) / "data/file").st_uid
        paths.etc.mkdir(parents=True)
        paths.config.write_text('log_level = "debug"\n')
        node.clean(instance)
        done = cli("backup", str(file), "--data", "-o", "json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["instances"], told["data"]) == (2, True)
        assert told["bytes"] == file.stat().st_size
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert [found for found in node.gc() if not found.removed] == []
    tag = tag_of(root)
    lose(root)
    done = cli("restore", str(file), "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["instances"] == 2
    node = make_node()
    assert tag_of(root) == tag
    assert [row[1:] for row in rows(node)] == [("keeper", "DEFINED"), ("second", "DEFINED")]
    after = node.inspect(instance)
    assert after["uuid"] == before["uuid"]
    assert node.get(instance).end.exit_code == 0
    kept = paths.instance_lib(instance) / "data"
    assert (kept / "file").read_text() == "kept\n"
    assert os.lstat(kept / "file").st_uid == owner
    assert os.readlink(kept / "deep/link") == "/etc/hostname"
    assert "up" in "".join(line.text.decode() for line in node.logs(instance))
    assert paths.config.read_text() == 'log_level = "debug"\n'
    node.configure(instance)
    assert run_inside(node, instance, "/bin/cat", "/data/file") == (0, "kept\n")
    assert list(paths.lib.glob(".*")) == []


def test_claims_that_others_have_here_are_replaced(
    root: Path, make_node: MakeNode, file: Path, tmp_path: Path
) -> None:
    with Node(root) as node:
        instance = start(node, name="keeper", shell=WRITE, veth=True)
        node.wait(instance, timeout_s=60)
        node.clean(instance)
        first, old = range_of(node, instance), node.identity
        address = node.context.store.find(instance).interfaces[0].address
        network = {"uuid": NETWORK, "ip_configuration": {"subnet": "192.168.7.0/24"}}
        path = virtual_networks.CATALOG.format(uuid=NETWORK)
        node.context.store.enter(Entry(path, "1/1", json.dumps(network)))
        points, faces = [{"id": "cp", "vld_ref": NETWORK}], [{"name": "eth0", "cp_id": "cp"}]
        on_it = make_descriptor(
            name="on-it", shell=WRITE, connection_points=points, interfaces=faces
        )
        node.define(on_it)
        kept = node.context.store.find("on-it").interfaces[0].address
        save(Paths(root), file, data=True)
        node.gc()
    lose(root)
    # Another node has come first, to the same block and the same subnet.
    other = Claims()
    foreign = tmp_path / "foreign/var/lib/nativert"
    foreign.mkdir(parents=True)
    taken = NodeFile(
        id="11111111-1111-4111-8111-111111111111",
        tag="aaaaaa",
        name="other",
        subnet=str(old.subnet),
        blocks=old.blocks,
    )
    other.register(
        foreign,
        node=lambda _host: taken,
        write=lambda node: (foreign / "node.json").write_bytes(msgspec.json.encode(node)),
    )
    try:
        told = restore(root, file, force=False)
        assert len(told.renumbered) == 2
        node = make_node()
        assert node.identity.id == old.id
        assert not node.identity.subnet.overlaps(old.subnet)
        moved = range_of(node, instance)
        assert moved != first
        assert (moved - first) % RANGE_IDS == 0
        data = Paths(root).instance_lib(instance) / "data"
        assert moved < os.lstat(data / "file").st_uid < moved + RANGE_IDS
        assert moved < os.lstat(data).st_uid < moved + RANGE_IDS
        assert os.lstat(data / "deep/link").st_uid == os.lstat(data / "file").st_uid
        now = node.context.store.find(instance).interfaces[0].address
        assert now != address
        assert now.rsplit(".", 1)[1] == address.rsplit(".", 1)[1]
        assert node.context.store.find("on-it").interfaces[0].address == kept
        assert kept.startswith("192.168.7.")
        node.configure(instance)
        assert run_inside(node, instance, "/bin/cat", "/data/file") == (0, "kept\n")
    finally:
        other.release_node(taken.id)


def test_a_node_that_is_there_is_replaced_by_force_only(
    root: Path, make_node: MakeNode, file: Path
) -> None:
    node = make_node()
    kept = node.define(make_descriptor(name="kept")).instance
    save(Paths(root), file, data=False)
    node.remove(kept)
    newer = start(node, name="newer", shell="sleep 1000")
    for force in (False, True):
        # Neither over a node, nor by force over one that has something configured.
        with pytest.raises(NativertError) as refused:
            restore(root, file, force=force)
        assert refused.value.code.word == "store"
        assert rows(node) == [(newer, "newer", "RUNNING")]
    node.stop(newer)
    node.clean(newer)
    node.close()
    restore(root, file, force=True)
    assert rows(make_node()) == [(kept, "kept", "DEFINED")]


def test_a_backup_of_a_node_that_works_is_one_state(
    root: Path, make_node: MakeNode, file: Path, tmp_path: Path
) -> None:
    busy = make_node()
    writer = (
        "i=0; while :; do i=$((i+1)); echo $i > /data/n; mv /data/n /data/m;"
        " ln -sfn / /data/x; rm -rf /data/x; mkdir -p /data/x/y; done"
    )
    instance = start(busy, name="busy", shell=writer)
    data = Paths(root).instance_lib(instance) / "data"
    until(lambda: (data / "m").exists(), what="the application writes")
    for number in range(20):
        busy.pause(instance)
        saved = save(Paths(root), file, data=True)
        assert saved.instances == 1
        busy.resume(instance)
        save(Paths(root), tmp_path / f"running-{number}", data=True)
    for one in (file, *tmp_path.glob("running-*")):
        verify(one)
        with opened(one) as tar:
            names = tar.getnames()
        # Whatever took the place of whatever, no link was followed.
        assert not [name for name in names if name.count("/") > 5 or "etc/passwd" in name]
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_what_is_damaged_can_be_replaced(root: Path, make_node: MakeNode, file: Path) -> None:
    paths = Paths(root)
    with Node(root) as node:
        node.define(make_descriptor(name="kept"))
        save(paths, file, data=False)
    paths.database.write_bytes(b"no store" * 1000)
    with pytest.raises(NativertError, match="damaged"):
        save(paths, file.with_name("other"), data=False)
    assert not file.with_name("other").exists()
    restore(root, file, force=True)
    paths.node.write_bytes(b"{")
    restore(root, file, force=True)
    assert [row.name for row in make_node().list()] == ["kept"]


def test_a_configuration_is_not_replaced_unasked(
    root: Path, make_node: MakeNode, file: Path, tmp_path: Path
) -> None:
    paths, without = Paths(root), tmp_path / "without"
    with Node(root):
        save(paths, without, data=False)
        paths.etc.mkdir(parents=True)
        paths.config.write_text("# saved\n")
        save(paths, file, data=False)
    lose(root)
    paths.etc.mkdir(parents=True)
    paths.config.write_text("# mine\n")
    with pytest.raises(NativertError, match="there is a configuration in"):
        restore(root, file, force=False)
    assert paths.config.read_text() == "# mine\n"
    assert not paths.database.exists()
    restore(root, without, force=False)
    assert paths.config.read_text() == "# mine\n"
    restore(root, file, force=True)
    assert paths.config.read_text() == "# saved\n"
    assert make_node().list() == []


def test_while_its_agent_serves_nothing_is_restored(
    root: Path, make_node: MakeNode, file: Path
) -> None:
    node = make_node()
    save(Paths(root), file, data=False)
    with NodeLock(Paths(root), "agent"), pytest.raises(NativertError, match="an agent serves"):
        restore(root, file, force=True)
    assert rows(node) == []


def test_without_a_node_there_is_nothing_to_save(tmp_path: Path, file: Path) -> None:
    with pytest.raises(NativertError, match="no node keeps its state"):
        save(Paths(tmp_path / "none"), file, data=False)
    assert not file.exists()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("nth", range(1, STEPS_TAKEN + 1))
def test_a_restore_that_fails_anywhere_leaves_what_was_there(
    root: Path, make_node: MakeNode, file: Path, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_node()
    node.define(make_descriptor(name="old"))
    paths = Paths(root)
    paths.etc.mkdir(parents=True)
    paths.config.write_text("# old\n")
    save(paths, file, data=False)
    newer = node.define(make_descriptor(name="newer")).instance
    (paths.instance_lib(newer) / "data").mkdir(parents=True)
    paths.config.write_text("# newer\n")
    before, identity = rows(node), node.identity
    node.close()
    calls = 0

    def failing(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise OSError(28, "No space left on device")
            return original(*args, **options)

        return call

    for name in STEPS:
        monkeypatch.setattr(restoring, name, failing(getattr(restoring, name)))
    with pytest.raises(OSError, match="No space"):
        restore(root, file, force=True)
    monkeypatch.undo()
    node = make_node()
    assert rows(node) == before
    assert node.identity == identity
    assert (paths.instance_lib(newer) / "data").is_dir()
    assert paths.config.read_text() == "# newer\n"
    assert list(paths.lib.glob(".*")) == []
    assert names_after_restore(root, node, file) == ["old"]
    assert paths.config.read_text() == "# old\n"


def names_after_restore(root: Path, node: Node, file: Path) -> list[str]:
    node.close()
    restore(root, file, force=True)
    with Node(root) as opened:
        return [row.name for row in opened.list()]


def test_what_an_application_lets_grow_without_data_fills_no_disk(
    root: Path, make_node: MakeNode, file: Path
) -> None:
    node = make_node(root)
    instance = start(node, name="holes", shell="truncate -s 1T /data/holes; echo up; sleep 1000")
    data = node.paths.instance_lib(instance) / "data" / "holes"
    until(lambda: data.exists() and data.stat().st_size == 1 << 40, what="it is there")
    assert save(node.paths, file, data=True).bytes < 8 << 20
    node.remove(instance, force=True)
    node.close()
    lose(root)
    restore(root, file, force=False)
    status = data.stat()
    assert (status.st_size, status.st_blocks) == (1 << 40, 0)


def test_no_room_is_told_before_it_is_used_up(
    root: Path, make_node: MakeNode, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_node(root)
    instance = start(node, name="big", shell="echo up; sleep 1000")
    data = node.paths.instance_lib(instance) / "data" / "file"
    data.write_bytes(b"x" * (3 << 20))
    free = os.statvfs(file.parent)

    def little(_: object) -> object:
        return os.statvfs_result((*free[:4], (2 << 20) // free.f_frsize, *free[5:]))

    monkeypatch.setattr(os, "statvfs", little)
    with pytest.raises(NativertError, match="3 MiB are to be saved, and 2 MiB are free"):
        save(node.paths, file, data=True)
    assert not file.exists()
    assert list(file.parent.glob(".nativert-backup-*")) == []
    assert save(node.paths, file, data=False).instances == 1
