"""Files damaged and kernel objects taken away: nobody is killed for it, nothing is left."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest
from aftermath import FOREVER, OPERATIONS, assert_nothing_left, facts, facts_path, live_on, prepare
from nodes import MakeNode, driver_of, start, until

from nativert.errors import Code, NativertError, StepError
from nativert.isolation import process
from nativert.isolation.cgroups.hierarchies import mounted
from nativert.runtime.node import Node
from nativert.store.paths import Paths

pytestmark = [pytest.mark.root, pytest.mark.netns]


@pytest.mark.parametrize("damage", [b"", b'{"run": 1, "boot', b"\x00" * 4096, b"[]"])
def test_a_damaged_exit_file_costs_nothing_while_init_lives(
    node: Node, root: Path, damage: bytes
) -> None:
    uuid = start(node, shell="exit 9")
    exit_file = Paths(root).instance_run(uuid) / "exit.json"
    until(exit_file.exists)
    exit_file.write_bytes(damage)
    told = node.get(uuid)
    assert told.state == "CONFIGURED"
    assert told.end is not None
    assert told.end.code == 9


@pytest.mark.parametrize(
    "damage",
    [b"", b'{"boot_id": "', b"\xff" * 100, b'{"boot_id": "x", "state": "GONE"}', b"[1, 2]"],
)
def test_damaged_facts_are_put_aside_and_the_instance_is_defined(
    node: Node, root: Path, damage: bytes
) -> None:
    uuid = prepare(node, "RUNNING")
    noted = facts(root, uuid)
    facts_path(root, uuid).write_bytes(damage)
    assert node.get(uuid).state == "DEFINED"
    assert not process.alive(noted["init_pid"], noted["init_start"])
    assert_nothing_left(node, root, uuid)
    live_on(node, uuid)


@pytest.mark.parametrize("state", ["CONFIGURED", "RUNNING", "PAUSED"])
def test_a_run_directory_removed_from_outside(node: Node, root: Path, state: str) -> None:
    uuid = prepare(node, state)
    noted = facts(root, uuid)
    shutil.rmtree(Paths(root).instance_run(uuid))
    assert node.get(uuid).state == "DEFINED"
    assert not process.alive(noted["init_pid"], noted["init_start"])
    assert_nothing_left(node, root, uuid)
    live_on(node, uuid)


def test_a_damaged_store_refuses_and_kills_nobody(make_node: MakeNode, root: Path) -> None:
    with make_node() as node:
        uuid = start(node, shell=FOREVER)
        noted = facts(root, uuid)
    database = Paths(root).database
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    kept = database.read_bytes()
    for damage in (kept[: len(kept) // 2], kept[:100], b"not a database", b""):
        database.write_bytes(damage)
        with pytest.raises(NativertError) as refusal, Node(root) as broken:
            broken.list()
            broken.get(uuid)
        assert refusal.value.code in (Code.STORE, Code.NOT_FOUND)
        assert process.alive(noted["init_pid"], noted["init_start"])
    database.write_bytes(kept)
    for side in ("-wal", "-shm"):
        Path(f"{database}{side}").unlink(missing_ok=True)
    assert make_node().get(uuid).state == "RUNNING"


def test_a_damaged_row_kills_nobody_and_can_be_removed(node: Node, root: Path) -> None:
    healthy = start(node, name="healthy", shell=FOREVER, veth=True)
    damaged = start(node, name="damaged", shell=FOREVER, veth=True)
    init = facts(root, damaged)
    with sqlite3.connect(Paths(root).database) as connection:
        connection.execute("UPDATE instances SET record = '{' WHERE name = 'damaged'")
    connection.close()
    assert [i.name for i in node.list()] == ["healthy"]
    assert node.gc() == []
    assert process.alive(init["init_pid"], init["init_start"])
    node.remove(damaged, force=True)
    assert not process.alive(init["init_pid"], init["init_start"])
    assert node.gc() == []
    assert node.get(healthy).state == "RUNNING"


def directories_of(root: Path, uuid: str) -> dict[Path, Path]:
    """The instance's cgroup in each hierarchy, with the hierarchy's root."""
    found = mounted(Path("/sys/fs/cgroup"))
    tops = {Path(top) for top in (*found.v1.values(), found.unified) if top}
    name = f"{driver_of(root).parent}/i-{uuid}"
    return {top / name: top for top in tops if (top / name).is_dir()}


def test_a_cgroup_emptied_from_outside(node: Node, root: Path) -> None:
    uuid = prepare(node, "RUNNING")
    for directory, top in directories_of(root, uuid).items():
        for pid in (directory / "cgroup.procs").read_text().split():
            (top / "cgroup.procs").write_text(pid)
    assert node.get(uuid).state == "RUNNING"
    with pytest.raises(StepError, match="not in its cgroup"):
        node.pause(uuid)
    assert node.get(uuid).state == "RUNNING"
    assert node.stop(uuid).state == "CONFIGURED"
    live_on(node, uuid)


@pytest.mark.parametrize("state", ["CONFIGURED", "RUNNING"])
def test_a_cgroup_removed_from_outside(node: Node, root: Path, state: str) -> None:
    uuid = prepare(node, state)
    for directory, top in directories_of(root, uuid).items():
        for pid in (directory / "cgroup.procs").read_text().split():
            (top / "cgroup.procs").write_text(pid)
        until(lambda directory=directory: gone(directory))
    assert node.get(uuid).state == state
    node.stats([uuid])
    if state == "RUNNING":
        for verb in ("pause", "scale"):
            with pytest.raises(NativertError):
                getattr(node, verb)(uuid, **OPERATIONS[verb][1])
            assert node.get(uuid).state == "RUNNING"
        assert node.stop(uuid).state == "CONFIGURED"
    with pytest.raises(NativertError):
        node.run(uuid)
    assert node.get(uuid).state == "CONFIGURED"
    live_on(node, uuid)


def gone(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def test_a_link_removed_from_outside(node: Node, root: Path) -> None:
    uuid = prepare(node, "RUNNING")
    link = facts(root, uuid)["links"][0]["link"]
    subprocess.run(["ip", "link", "del", link], check=True)
    assert node.get(uuid).state == "RUNNING"
    assert node.stats([uuid])[0].net_rx_bytes is None
    assert node.stop(uuid).state == "CONFIGURED"
    live_on(node, uuid)
