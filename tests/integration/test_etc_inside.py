"""The /etc that an instance sees: its own files, nobody's secrets, whatever the host does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from nodes import make_descriptor, run_inside, start

from nativert.runtime import etc
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

SLEEP = "exec sleep 1000"


def inside(node: Node, app: str, script: str) -> str:
    code, text = run_inside(node, app, "/bin/sh", "-c", script)
    assert code == 0, text
    return text


def test_secrets_are_not_there_by_name_and_etc_is_one_mount(node: Node) -> None:
    app = start(node, shell=SLEEP, veth=True)
    shown = set(inside(node, app, "ls -a /etc").split())
    assert not shown & {name for name in etc.SECRET if "/" not in name}
    # Nothing else of the host's is missing, and nothing is there that it has not.
    own = {"hosts", "hostname", "resolv.conf", "passwd"}
    assert shown - {".", ".."} - own == set(os.listdir("/etc")) - set(etc.SECRET) - own
    for name in etc.SECRET:
        assert run_inside(node, app, "stat", f"/etc/{name}")[0] != 0, name
    mounts = [line for line in inside(node, app, "cat /proc/mounts").splitlines() if "/etc" in line]
    assert len(mounts) == 1
    device, point, kind, options, *_ = mounts[0].split()
    assert (device, point, kind) == ("overlay", "/etc", "overlay")
    assert {"ro", "nosuid", "nodev"} <= set(options.split(","))
    assert "/nativert" not in mounts[0]


def test_what_the_host_replaces_leaves_an_instance_its_own(node: Node, tmp_path: Path) -> None:
    image = tmp_path / "image"
    (image / "etc").mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (image / name).symlink_to(f"usr/{name}")
    (image / "usr").mkdir()
    (image / "etc/hosts").write_text("192.0.2.1 old\n")
    (image / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    native = {"rootfs": "image", "mounts": [{"source": "/usr", "target": "/usr"}]}
    app = start(node, shell=SLEEP, native=native, image={"uri": f"file://{image}"}, veth=True)
    show = "cd /etc; cat hosts hostname resolv.conf passwd; ls -a"
    before = inside(node, app, show)
    assert "app:x:1000:1000::" in before
    for name in ("hosts", "hostname", "resolv.conf", "passwd"):
        (tmp_path / "new").write_text("192.0.2.2 of the host\n")
        os.rename(tmp_path / "new", image / "etc" / name)
        assert inside(node, app, show) == before
    node.clean(node.stop(app).instance)
    node.configure(app)
    node.run(app)
    assert "of the host" not in inside(node, app, "cat /etc/hosts /etc/hostname /etc/resolv.conf")


@pytest.mark.parametrize("target", ["/etc/ssh", "/etc/ssl/private", "/etc/new/deep"])
def test_a_mount_where_the_host_has_nothing_to_show(
    node: Node, tmp_path: Path, target: str
) -> None:
    """A server's own keys at /etc/ssl/private are not the host's secrets."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/key").write_text("of the instance\n")
    native = {
        "mounts": [
            {"source": str(tmp_path / "keys"), "target": target},
            {"source": str(tmp_path / "keys/key"), "target": "/etc/shadow"},
        ]
    }
    app = start(node, shell=SLEEP, native=native)
    assert inside(node, app, f"cat {target}/key /etc/shadow") == "of the instance\n" * 2
    assert set(os.listdir("/etc/ssl")) - {"private"} <= set(
        inside(node, app, "ls /etc/ssl").split()
    )


def test_instances_share_the_layer_that_hides(node: Node) -> None:
    for name in ("a", "b"):
        node.configure(node.define(make_descriptor(name=name, shell=SLEEP)).instance)
    (layer,) = (node._context.paths.run / "etc").iterdir()
    assert (layer / "shadow").is_char_device()
