"""What the escape audit finds open inside real instances: nothing that was not asked for.

The host is prepared with a canary wherever the audit looks for one, so that nothing of it is
undecided for want of something to find.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import scale
from nodes import PYTHON, log_text, make_descriptor, run_inside, start

from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

AUDIT = Path(__file__).with_name("escape_audit.py")
# Another machine's ABI, or address families that the kernel was built without.
MAY_BE_UNDECIDED = {"x32_abi", "i386_abi", "vsock_socket", "alg_socket", "packet_socket"}
# `mode: host` is these three and nothing else.
HOST_NETWORK = {"host_net_namespace", "host_interfaces_visible", "host_abstract_sockets"}


@dataclass(frozen=True)
class Prepared:
    """A host with a canary, and the directory that brings the audit in."""

    word: str
    directory: Path

    @property
    def command(self) -> tuple[str, ...]:
        """The audit as it is called inside."""
        host = ",".join(os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net"))
        told = ("--canary", self.word, "--host", host)
        return (PYTHON, "/audit/escape_audit.py", "--json", *told)

    def native(self, **native: Any) -> dict[str, Any]:
        """Return a native object that shows the audit at /audit."""
        mounts = [{"source": str(self.directory), "target": "/audit"}, *native.pop("mounts", [])]
        return {"mounts": mounts} | native


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    """The host with a canary in every place that the audit names."""
    word = f"canary{uuid.uuid4().hex[:8]}"
    directory = tmp_path_factory.mktemp("audit")
    # pytest makes directories that only root may enter.
    directory.chmod(0o755)
    shutil.copy(AUDIT, directory)
    with ExitStack() as host:
        for place in ("/tmp", "/var/tmp", "/dev/shm", "/run", "/root", "/mnt"):
            Path(place, word).touch()
            host.callback(Path(place, word).unlink)
        listener = host.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(f"\0{word}")
        listener.listen()
        mounted = tmp_path_factory.mktemp("mounts") / word
        mounted.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", str(mounted)], check=True)
        host.callback(subprocess.run, ["umount", str(mounted)], check=True)
        link = word[:15]
        # Not a bridge: beside another one no node would switch forwarding off again.
        veth = ["ip", "link", "add", link, "type", "veth", "peer", "name", f"p{link[:14]}"]
        subprocess.run(veth, check=True)
        host.callback(subprocess.run, ["ip", "link", "delete", link], check=True)
        sleeper = subprocess.Popen(["sh", "-c", "read line", word], stdin=subprocess.PIPE)
        host.callback(sleeper.communicate)
        # The launcher, and so every init, is started from this environment.
        patch = host.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("CANARY", word)
        yield Prepared(word, directory)


def judged(text: str) -> dict[str, bool | None]:
    """Return the verdicts of a finished audit; not one probe may be missing."""
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert len(rows) >= 237, text[-2000:]
    undecided = {row["probe"]: row["detail"] for row in rows if row["allowed"] is None}
    assert undecided.keys() <= MAY_BE_UNDECIDED, undecided
    return {row["probe"]: row["allowed"] for row in rows}


def allowed(verdicts: dict[str, bool | None]) -> set[str]:
    """Return the probes that got what they asked for."""
    return {probe for probe, verdict in verdicts.items() if verdict}


def audit_as_application(node: Node, prepared: Prepared, **fields: Any) -> set[str]:
    """Let the audit be the application of an instance; return what it was allowed."""
    native = prepared.native(**fields.pop("native", {}))
    binary, *args = prepared.command
    app = start(node, binary=binary, args=args, native=native, **fields)
    ended = node.wait(app, timeout_s=scale.seconds(60))
    verdicts = judged(log_text(node, app))
    assert ended.end is not None
    assert ended.end.exit_code == len(allowed(verdicts))
    return allowed(verdicts)


@pytest.mark.parametrize(
    "native",
    [
        pytest.param({}, id="default"),
        pytest.param({"user": "root"}, id="root"),
        pytest.param({"network": {"mode": "none"}}, id="no-network"),
    ],
)
def test_an_application_is_allowed_nothing(
    node: Node, prepared: Prepared, native: dict[str, Any]
) -> None:
    assert audit_as_application(node, prepared, native=native) == set()


def test_with_a_veth_it_is_allowed_nothing(node: Node, prepared: Prepared) -> None:
    assert audit_as_application(node, prepared, veth=True) == set()


@pytest.mark.parametrize("user", [1000, "root"])
def test_the_host_network_is_all_that_the_host_network_gives(
    node: Node, prepared: Prepared, user: int | str
) -> None:
    native = {"network": {"mode": "host"}, "user": user}
    assert audit_as_application(node, prepared, native=native) == HOST_NETWORK


@pytest.mark.parametrize("user", [1000, 0])
def test_an_image_as_the_whole_root(
    node: Node, prepared: Prepared, tmp_path: Path, user: int
) -> None:
    image = tmp_path / "image"
    for name in ("usr", "etc"):
        (image / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (image / name).symlink_to(f"usr/{name}")
    native = {
        "rootfs": "image",
        "user": user,
        "mounts": [{"source": "/usr", "target": "/usr"}],
    }
    found = audit_as_application(node, prepared, native=native, image={"uri": f"file://{image}"})
    assert found == set()


@pytest.mark.parametrize("user", [1000, "root"])
def test_a_session_is_allowed_nothing(node: Node, prepared: Prepared, user: int | str) -> None:
    app = start(node, shell="read line", native=prepared.native(user=user, stop={"grace": 0}))
    node.wait(app, timeout_s=scale.LONG_S)
    _, text = run_inside(node, app, *prepared.command)
    assert allowed(judged(text)) == set()


def test_a_session_on_a_terminal_is_allowed_nothing(node: Node, prepared: Prepared) -> None:
    app = start(node, shell="exec sleep 100", native=prepared.native(stop={"grace": 0}))
    session = node.exec(app, prepared.command, stdio=(0, 1, 2), tty=True)
    try:
        assert session.master is not None
        text = read_terminal(session.master)
        session.wait()
    finally:
        session.close()
    assert allowed(judged(text)) == set()


def read_terminal(master: int) -> str:
    """Return what is written to a terminal until its last writer is gone."""
    parts = []
    while select.select([master], [], [], 60)[0]:
        try:
            parts.append(os.read(master, 65536))
        except OSError:  # EIO, see pty(7)
            break
    return b"".join(parts).decode()


def test_a_configuration_script_is_allowed_nothing(
    node: Node, prepared: Prepared, root: Path
) -> None:
    command = shlex.join(prepared.command)
    script = f"{command} > /data/found || true\n"
    descriptor = make_descriptor(
        binary="/bin/true",
        native=prepared.native(),
        configuration={"conf_type": "SCRIPT", "script": script},
    )
    app = node.define(descriptor).instance
    node.configure(app)
    found = root / "var/lib/nativert/i" / app / "data/found"
    assert allowed(judged(found.read_text())) == set()
