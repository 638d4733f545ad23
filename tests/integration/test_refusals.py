"""Bad input: each its own clear error with its code, and nothing left behind."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nodes import make_descriptor, run_inside, start
from refusal import configure_refused, refused

from nativert.errors import Code, NativertError
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"
MIB = 1 << 20


# -- the program -----------------------------------------------------------------------------


def test_missing_binary(node: Node, cli: Callable[..., Any]) -> None:
    configure_refused(node, Code.COMMAND_NOT_FOUND, "/usr/bin/nonesuch", binary="/usr/bin/nonesuch")
    done = cli("configure", "app")
    assert done.returncode == 127
    assert done.stderr.count("\n") == 1


def test_missing_binary_in_path_is_told_at_run(node: Node) -> None:
    ref = node.define(make_descriptor(binary="nonesuch", veth=True)).instance
    node.configure(ref)
    with refused(Code.COMMAND_NOT_FOUND, "nonesuch"):
        node.run(ref)
    row = node.get(ref)
    assert row.state == "CONFIGURED"
    assert row.end is not None
    assert row.end.reason == "exec-failed"
    # The instance is as good as before.
    assert run_inside(node, ref, "true")[0] == 0


@pytest.fixture
def opt() -> Iterator[Path]:
    """A directory of the host that instances see."""
    path = Path("/opt", f"nativert-test-{os.getpid()}")
    path.mkdir()
    yield path
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def test_not_executable(node: Node, opt: Path) -> None:
    (opt / "text").write_text("hello\n")
    configure_refused(node, Code.NOT_EXECUTABLE, "text", "chmod +x", binary=str(opt / "text"))
    configure_refused(node, Code.NOT_EXECUTABLE, "not an executable", binary=str(opt), name="b")


def test_wrong_architecture(node: Node, opt: Path) -> None:
    # An ELF header of a SPARC, 64 bit, big-endian.
    header = b"\x7fELF\x02\x02\x01" + bytes(9) + struct.pack(">HHI", 2, 43, 1) + bytes(40)
    (opt / "sparc").write_bytes(header)
    (opt / "sparc").chmod(0o755)
    configure_refused(
        node, Code.NOT_EXECUTABLE, "architecture", os.uname().machine, binary=str(opt / "sparc")
    )


def test_missing_interpreter(node: Node, opt: Path) -> None:
    (opt / "script").write_text("#!/usr/bin/nonesuch\n")
    (opt / "script").chmod(0o755)
    ref = node.define(make_descriptor(binary=str(opt / "script"))).instance
    node.configure(ref)
    with refused(Code.NOT_EXECUTABLE, "interpreter", str(opt / "script")):
        node.run(ref)
    assert node.get(ref).state == "CONFIGURED"


def test_neither_program_nor_script(node: Node, opt: Path) -> None:
    (opt / "noise").write_bytes(b"\0\1\2\3")
    (opt / "noise").chmod(0o755)
    ref = node.define(make_descriptor(binary=str(opt / "noise"))).instance
    node.configure(ref)
    with refused(Code.NOT_EXECUTABLE, "noise"):
        node.run(ref)
    assert node.get(ref).state == "CONFIGURED"


@pytest.mark.parametrize("binary", ["/home/pi/app/run", "/root/venv/bin/python", "/srv/app"])
def test_a_program_that_is_not_shown_inside(node: Node, binary: str) -> None:
    ref = configure_refused(node, Code.COMMAND_NOT_FOUND, binary, "not visible", binary=binary)
    with pytest.raises(NativertError) as caught:
        node.configure(ref)
    assert "--bind-here" in caught.value.hint
    assert "mounts" in caught.value.hint


def test_missing_user(node: Node) -> None:
    configure_refused(
        node, Code.CONFIGURE, "nosuchuser", shell=SLEEP, native={"user": "nosuchuser"}
    )


def test_missing_workdir(node: Node) -> None:
    ref = node.define(make_descriptor(shell=SLEEP, native={"workdir": "/nonesuch"})).instance
    node.configure(ref)
    with refused(Code.RUN, "/nonesuch", "working directory"):
        node.run(ref)
    assert node.get(ref).state == "CONFIGURED"


# -- mounts ----------------------------------------------------------------------------------


def test_missing_mount_source(node: Node, tmp_path: Path) -> None:
    mounts = [{"source": str(tmp_path / "nonesuch"), "target": "/srv"}]
    configure_refused(
        node, Code.CONFIGURE, str(tmp_path / "nonesuch"), "/srv",
        shell=SLEEP, veth=True, native={"mounts": mounts},
    )  # fmt: skip


def test_mount_target_in_a_read_only_place(node: Node, tmp_path: Path) -> None:
    mounts = [{"source": str(tmp_path), "target": "/usr/nonesuch/here"}]
    configure_refused(
        node, Code.CONFIGURE, "/usr/nonesuch/here", "must exist",
        shell=SLEEP, veth=True, native={"mounts": mounts},
    )  # fmt: skip
    assert not Path("/usr/nonesuch").exists()


# -- addresses, ports, names -----------------------------------------------------------------


def test_no_address_left(node: Node) -> None:
    context = node._context
    tiny = IPv4Network((int(context.identity.subnet.network_address), 30))
    context.identity = msgspec.structs.replace(context.identity, subnet=tiny)
    first = node.define(make_descriptor(name="first", shell=SLEEP, veth=True)).instance
    with refused(Code.ADDRESS_EXHAUSTED, str(tiny), "1 are in use"):
        node.define(make_descriptor(name="second", shell=SLEEP, veth=True))
    assert [row.name for row in node.list()] == ["first"]
    node.undefine(first)
    node.define(make_descriptor(name="second", shell=SLEEP, veth=True))


def publishing(port: int, **fields: Any) -> dict[str, Any]:
    return {
        "shell": SLEEP,
        "veth": True,
        "native": {"network": {"ports": [f"{port}:80"]}},
        **fields,
    }


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_port_taken_by_a_process_of_the_host(node: Node, host: str) -> None:
    with socket.create_server((host, 21101)):
        ref = configure_refused(node, Code.PORT_TAKEN, "21101", **publishing(21101))
    node.configure(ref)


def test_port_taken_by_another_instance(node: Node) -> None:
    owner = start(node, **publishing(21102, name="owner"))
    ref = node.define(make_descriptor(**publishing(21102))).instance
    with refused(Code.PORT_TAKEN, "21102", owner):
        node.configure(ref)
    assert node.get(ref).state == "DEFINED"
    assert node.get(owner).state == "RUNNING"
    assert not node._context.paths.instance_run(ref).exists()
    node.stop(owner)
    node.clean(owner)
    node.configure(ref)


def test_port_taken_by_another_node(
    node: Node, make_node: Callable[..., Node], tmp_path: Path
) -> None:
    other = make_node(tmp_path / "other")
    start(other, **publishing(21103, name="owner"))
    ref = configure_refused(
        node, Code.PORT_TAKEN, "21103", str(tmp_path / "other"), **publishing(21103)
    )
    other.remove("owner")
    node.configure(ref)


def test_name_taken(node: Node, cli: Callable[..., Any], tmp_path: Path) -> None:
    first = node.define(make_descriptor(shell=SLEEP))
    with refused(Code.NAME_TAKEN, "app"):
        node.define(make_descriptor(shell=SLEEP))
    assert [row.instance for row in node.list()] == [first.instance]
    node.define(make_descriptor(shell=SLEEP), name="other")
    with refused(Code.NAME_TAKEN, "other"):
        node.define(make_descriptor(shell=SLEEP), name="other")
    document = tmp_path / "app.json"
    document.write_text(
        '{"id":"app","name":"app","hypervisor":"BARE","command":{"binary":"/bin/true"}}'
    )
    done = cli("run", str(document))
    assert done.returncode == 4
    assert "app" in done.stderr
    assert len(node.list()) == 2


# -- limits, requirements, disk --------------------------------------------------------------


def test_a_limit_that_nothing_enforces(node: Node) -> None:
    configure_refused(
        node,
        Code.UNENFORCEABLE,
        "cpuset",
        shell=SLEEP,
        veth=True,
        native={"cpu": {"cpuset": "4000"}},
    )


def test_requirements_that_this_machine_has_not(node: Node) -> None:
    for field, value in (("cpu_arch", "sparc64"), ("cpu_min_count", 4096)):
        with refused(Code.REQUIREMENTS, field):
            node.define(make_descriptor(shell=SLEEP, computation_requirements={field: value}))
    assert node.list() == []
    for field, value in (("ram_size_mb", 1 << 30), ("storage_size_gb", 1 << 30)):
        configure_refused(
            node, Code.REQUIREMENTS, field,
            name=field, shell=SLEEP, computation_requirements={field: value},
        )  # fmt: skip


def test_bad_descriptors_through_the_cli(cli: Callable[..., Any], tmp_path: Path) -> None:
    document = tmp_path / "bad.yaml"
    document.write_text(
        "id: a\nname: a\nhypervisor: BARE\ncommand: {binary: /bin/true}\nnative: {cpu: {maxi: 1}}\n"
    )
    done = cli("define", str(document))
    assert done.returncode == 2
    assert "native.cpu.maxi" in done.stderr
    assert cli("define", str(tmp_path / "nonesuch.yaml")).returncode == 2
    assert cli("inspect", "nonesuch").returncode == 3
