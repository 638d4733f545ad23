"""Programs that cannot be executed, each with its verdict, found when it was noted."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nodes import MakeNode, make_descriptor
from refusal import configure_refused
from telling import Cli, told

from nativert.errors import Code, NativertError
from nativert.isolation.syscalls import MNT_DETACH, MS_NOEXEC, mount, umount2
from nativert.runtime import run as runs
from nativert.runtime.diagnosis_root import Ids, Root
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"


@pytest.fixture
def opt() -> Iterator[Path]:
    """A directory of the host that instances see."""
    path = Path("/opt", f"nativert-test-{os.getpid()}")
    path.mkdir()
    yield path
    for file in path.iterdir():
        file.unlink() if not file.is_dir() else file.rmdir()
    path.rmdir()


def script(path: Path, text: str = "#!/bin/sh\n", mode: int = 0o755) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def refused(node: Node, prepare: Callable[[], object], code: Code, **fields: Any) -> str:
    """Configure what is well, spoil it by *prepare*, run it; return the instance."""
    ref = node.define(make_descriptor(**fields)).instance
    node.configure(ref)
    prepare()
    with pytest.raises(NativertError) as caught:
        node.run(ref)
    assert caught.value.code is code, caught.value
    return ref


SPARC = b"\x7fELF\x02\x02\x01" + bytes(9) + struct.pack(">HHI", 2, 43, 1) + bytes(40)


def spoilers(opt: Path) -> dict[str, tuple[Callable[[], object], str, Code, str]]:
    """Return {case: (what spoils opt/app, fault, code, a part of the sentence)}."""
    app, bad = opt / "app", Code.NOT_EXECUTABLE

    def link() -> None:
        app.unlink()
        app.symlink_to("gone")

    def gone() -> None:
        app.unlink()

    return {
        "gone": (gone, "not-found", Code.COMMAND_NOT_FOUND, "no such program: not there"),
        "link": (link, "not-found", Code.COMMAND_NOT_FOUND, "is a link to gone, which is not"),
        "mode": (lambda: app.chmod(0o644), "not-executable", bad, "its mode is 0644: no x for any"),
        "owner": (lambda: app.chmod(0o700), "not-executable", bad, "0700: no x for the appl"),
        "way": (lambda: opt.chmod(0o700), "not-executable", bad, "(0700) may not be entered"),
        "machine": (
            lambda: app.write_bytes(SPARC),
            "wrong-architecture",
            bad,
            f"built for another architecture, SPARC V9 (64 bit); this node is {os.uname().machine}",
        ),
        "text": (lambda: app.write_text("hello\n"), "damaged", bad, "nor a script with a #! line"),
        "empty": (lambda: app.write_text(""), "damaged", bad, "app: it is empty"),
        "cut": (
            lambda: app.write_bytes(Path(sys.executable).resolve().read_bytes()[:80]),
            "damaged",
            bad,
            "a damaged ELF file",
        ),
        "interpreter": (
            lambda: app.write_text("#!/usr/bin/nonesuch -x\n"),
            "missing-interpreter",
            bad,
            "its interpreter /usr/bin/nonesuch is not there",
        ),
        "carriage return": (
            lambda: app.write_bytes(b"#!/bin/sh\r\n"),
            "missing-interpreter",
            bad,
            r"its interpreter '/bin/sh\r' is not there",
        ),
        "interpreter's machine": (
            lambda: (opt / "tool").write_bytes(SPARC) and app.write_text(f"#!{opt}/tool\n"),
            "wrong-architecture",
            bad,
            "tool: built for another architecture",
        ),
    }


@pytest.mark.parametrize("case", [*spoilers(Path())])
def test_a_program_that_cannot_be_executed(
    node: Node, cli: Cli, make_node: MakeNode, opt: Path, case: str
) -> None:
    script(opt / "tool")
    spoil, fault, code, words = spoilers(opt)[case]
    ref = refused(node, spoil, code, binary=script(opt / "app"))
    # What is found later is not what was there.
    opt.chmod(0o755)
    end = told(cli, make_node, ref)
    assert (end.reason, end.fault, end.code) == ("exec-failed", fault, code.exit_code)
    assert words in end.message


def test_a_program_that_is_nowhere_in_path(node: Node, cli: Cli, make_node: MakeNode) -> None:
    ref = refused(node, lambda: None, Code.COMMAND_NOT_FOUND, binary="nonesuch")
    end = told(cli, make_node, ref)
    assert end.message.startswith("nonesuch: no such program in /usr/local/sbin:")
    assert end.fault == "not-found"


def test_a_program_that_is_being_written(
    node: Node, cli: Cli, make_node: MakeNode, opt: Path
) -> None:
    with (opt / "other").open("w") as other:
        app = script(opt / "app")
        (opt / "app").unlink()
        (opt / "app").symlink_to("/bin/true")
        ref = node.define(make_descriptor(binary=app)).instance
        node.configure(ref)
        (opt / "app").unlink()
        Path(other.name).rename(app)
        other.write("#!/bin/sh\n")
        other.flush()
        Path(app).chmod(0o755)
        with pytest.raises(NativertError, match="open for writing"):
            node.run(ref)
    end = told(cli, make_node, ref)
    assert (end.reason, end.fault) == ("exec-failed", "busy")


def test_a_mount_that_nothing_may_be_executed_from(node: Node, tmp_path: Path) -> None:
    source = tmp_path / "noexec"
    source.mkdir()
    mount("tmpfs", str(source), "tmpfs", MS_NOEXEC, "size=1m,mode=0755")
    try:
        script(source / "app")
        native = {"mounts": [{"source": str(source), "target": "/opt"}]}
        configure_refused(node, Code.NOT_EXECUTABLE, "noexec", binary="/opt/app", native=native)
        # A script may put it there only later: then the same is seen from inside.
        why = Root(source).forbidden("/app", Ids(1, 1))
    finally:
        umount2(str(source), MNT_DETACH)
    assert why == "its file system is mounted noexec"


def test_a_failed_start_that_its_starter_did_not_live_to_note(
    node: Node, cli: Cli, make_node: MakeNode, opt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = script(opt / "app")
    ref = node.define(make_descriptor(binary=app)).instance
    node.configure(ref)
    (opt / "app").unlink()

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runs, "_withdraw", dies)
        with pytest.raises(KeyboardInterrupt):
            node.run(ref)
    end = told(cli, make_node, ref)
    assert (end.reason, end.fault) == ("exec-failed", "not-found")


@pytest.mark.cgroup_v2
def test_no_room_for_a_process_below_its_pids_limit(
    node: Node, cli: Cli, make_node: MakeNode
) -> None:
    ref = node.define(make_descriptor(shell=SLEEP, native={"pids": {"max": 1}})).instance
    node.configure(ref)
    null = os.open("/dev/null", os.O_RDWR)
    session = node.exec(ref, ["sleep", "1000"], stdio=(null, null, null))
    try:
        with pytest.raises(NativertError, match="1 of at most 1"):
            node.run(ref)
    finally:
        session.close()
        os.close(null)
    end = told(cli, make_node, ref)
    assert (end.reason, end.fault) == ("exec-failed", "pids-limit")
