"""A full disk: refused is what needs room, never what ends an instance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from agents import serving
from invariants import i5_edges, records
from nodes import make_descriptor, run_inside, start, until, until_logged
from refusal import assert_nothing_of, image_of, refused, tar_with

from nativert.errors import Code
from nativert.isolation.syscalls import MNT_DETACH, mount, umount2
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"


@pytest.fixture
def full_disk(root: Path) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """The node's lib is a small file system, which is full in the returned blocks."""
    lib = root / "var/lib/nativert"
    lib.mkdir(parents=True)
    mount("nativert-test", str(lib), "tmpfs", data="size=64m,mode=0700")
    ballast = lib / "ballast"

    @contextmanager
    def full() -> Iterator[None]:
        try:
            with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError, match="space"):
                while True:
                    file.write(bytes(4096))
            yield
        finally:
            ballast.unlink()

    yield full
    umount2(str(lib), MNT_DETACH)


def test_full_disk(
    full_disk: Callable[[], AbstractContextManager[None]], node: Node, tmp_path: Path
) -> None:
    (tmp_path / "image.tar").write_bytes(tar_with())
    image = image_of(tmp_path / "image.tar")
    ref = node.define(make_descriptor(binary="app", image=image)).instance
    with full_disk():
        with refused(Code.IMAGE, "space"):
            node.configure(ref)
        with refused(Code.STORE, "space"):
            node.define(make_descriptor(name="more", shell=SLEEP))
        assert [row.state for row in node.list()] == ["DEFINED"]
    assert_nothing_of(node, ref)


def test_a_log_on_a_full_disk_does_not_disturb_the_application(
    full_disk: Callable[[], AbstractContextManager[None]], node: Node, cli: Callable[..., Any]
) -> None:
    # Each time more than the page that its file may have left.
    app = start(node, shell="while sleep 0.01; do seq 2000; done")
    with full_disk():
        before = node.stats([app])[0].cpu_ns
        until(lambda: (node.stats([app])[0].cpu_ns or 0) > (before or 0) + 30_000_000)
        assert run_inside(node, app, "true")[0] == 0
        assert node.get(app).state == "RUNNING"
        # A new command may have no room to open the store; then it says why.
        done = cli("ps")
        assert done.returncode == 0 or "no space left" in done.stderr
    until_logged(node, app, "bytes of log dropped")
    assert node.stop(app).state == "CONFIGURED"


def test_instances_are_stopped_and_removed_on_a_full_disk(
    full_disk: Callable[[], AbstractContextManager[None]], node: Node, cli: Callable[..., Any]
) -> None:
    for name in ("one", "two"):
        start(node, name=name, shell=SLEEP)
    # As an operator would: every command opens the store anew.
    node.close()
    with full_disk():
        for arguments in (("stop", "one"), ("rm", "one"), ("rm", "--force", "two")):
            done = cli(*arguments)
            assert done.returncode == 0, (arguments, done.stderr)
        assert cli("ps", "-a", "-o", "json").stdout.strip() == "[]"


@pytest.mark.parametrize("through", ["node", "agent"])
def test_a_put_on_a_full_disk_leaves_what_was_there(
    full_disk: Callable[[], AbstractContextManager[None]], node: Node, root: Path, through: str
) -> None:
    uuid = start(node, name="app", shell=SLEEP)
    node.write_file("app", "file", [b"old"])
    with ExitStack() as stack:
        facade: Any = node
        if through == "agent":
            facade = stack.enter_context(stack.enter_context(serving(root)).client())
        with full_disk(), refused(Code.NO_SPACE, "space"):
            facade.write_file("app", "file", [b"new" * 10_000])
        # What does not fit is given up on the way, and its room given back.
        free = node.context.os.free_bytes(node.paths.lib)
        with refused(Code.NO_SPACE, "space"):
            facade.write_file("app", "other", (bytes(1 << 20) for _ in range(80)))
        assert node.context.os.free_bytes(node.paths.lib) > free - (1 << 20)
        assert facade.get("app").state == "RUNNING"
    assert [entry.name for entry in node.ls("app")] == ["file"]
    assert node.read("app", "file", limit=10) == b"old"
    assert [path.name for path in (node.paths.lib / "i").iterdir()] == [uuid]


def test_an_agent_goes_on_on_a_full_disk(
    full_disk: Callable[[], AbstractContextManager[None]], node: Node, root: Path
) -> None:
    for name in ("one", "two"):
        start(node, name=name, shell=SLEEP)
    node.context.store.flush()
    before = records(root)
    cursor = node.latest_event()
    with serving(root) as agent, agent.client() as client:
        with full_disk():
            with refused(Code.STORE, "space"):
                client.define(make_descriptor(name="more", shell=SLEEP))
            assert client.pause("one").state == "PAUSED"
            assert client.resume("one").state == "RUNNING"
            assert client.stop("one").state == "CONFIGURED"
            client.remove("two", force=True)
            assert [row.name for row in client.list()] == ["one"]
            assert agent.ask("GET", "/healthz")[0] == 200
        kept = records(root)
        assert list(kept) == [client.get("one").instance]
        assert kept.items() <= before.items()
        # With room again it goes on, and what waited for it is told.
        assert client.run("one").state == "RUNNING"
        until(lambda: "started" in [event.kind for event in client.events(cursor)])
        one = [event for event in client.events(cursor) if event.name == "one"]
        assert i5_edges(one, state="RUNNING") == []
        assert client.stop("one").state == "CONFIGURED"
