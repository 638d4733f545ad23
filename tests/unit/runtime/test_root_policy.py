"""The order and content of an instance's root, for descriptors that ask for much."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nativert.errors import Code, NativertError
from nativert.fdu import descriptor as descriptors
from nativert.launcher.plan import FLAGS, Step
from nativert.runtime import root


def plan(
    tmp_path: Path, native: dict[str, object] | None = None, *, image: Path | None = None
) -> list[Step]:
    document: dict[str, object] = {
        "id": "a",
        "name": "a",
        "hypervisor": "BARE",
        "command": {"binary": "/bin/true"},
        "native": native or {},
    }
    if image is not None:
        document["image"] = {"uri": f"file://{image}"}
    decoded = descriptors.decode(json.dumps(document).encode(), source="a")
    etc = tmp_path / "our-etc"
    etc.mkdir(exist_ok=True)
    (etc / "hosts").touch()
    hidden = None if image is not None else tmp_path / "hidden"
    sources = root.Sources(
        data=tmp_path, etc=etc, hidden=hidden, image=image, script=None, owner=(7, 8)
    )
    return root.steps(decoded, sources)


def mounted(steps: list[Step]) -> list[str]:
    return [step.target for step in steps if step.kind in ("bind", "tmpfs")]


def test_nothing_of_the_host_outside_of_the_list_is_shown(tmp_path: Path) -> None:
    steps = plan(tmp_path)
    sources = {step.source for step in steps if step.kind == "bind"}
    allowed = {f"/{name}" for name in root.SHOWN} | {str(tmp_path)}
    assert {source for source in sources if not source.startswith("/etc/")} <= allowed
    assert not {"/root", "/home", "/var", "/srv", "/mnt", "/boot"} & sources


def test_what_is_the_hosts_is_read_only_and_nothing_honours_set_uid(tmp_path: Path) -> None:
    for step in plan(tmp_path, {"tmpfs": ["/scratch"]}):
        assert set(step.flags) <= set(FLAGS)
        if step.kind in ("bind", "tmpfs"):
            assert {"nosuid", "nodev"} <= set(step.flags), step
        if step.kind == "bind" and step.target != "/data":
            assert "ro" in step.flags, step


def test_mounts_are_made_from_the_outside_in(tmp_path: Path) -> None:
    native = {
        "mounts": [
            {"source": str(tmp_path), "target": "/srv/a/b"},
            {"source": str(tmp_path), "target": "/srv", "read_only": False},
            {"source": str(tmp_path), "target": "/data/in"},
        ],
        "tmpfs": ["/srv/a"],
    }
    order = mounted(plan(tmp_path, native))
    assert order.index("/srv") < order.index("/srv/a") < order.index("/srv/a/b")
    assert order.index("/data") < order.index("/data/in")


def test_a_mount_that_is_writable_is_so_only_when_asked(tmp_path: Path) -> None:
    native = {
        "mounts": [
            {"source": str(tmp_path), "target": "/a"},
            {"source": str(tmp_path), "target": "/b", "read_only": False},
        ]
    }
    flags = {step.target: step.flags for step in plan(tmp_path, native)}
    assert "ro" in flags["/a"]
    assert "ro" not in flags["/b"]


def test_a_missing_source_is_refused_with_its_path(tmp_path: Path) -> None:
    native = {"mounts": [{"source": str(tmp_path / "absent"), "target": "/srv"}]}
    with pytest.raises(NativertError, match=r"absent: no such file") as refused:
        plan(tmp_path, native)
    assert refused.value.code is Code.CONFIGURE
    assert "/srv" in refused.value.hint


def test_etc_is_one_mount_of_layers_the_instances_own_on_top(tmp_path: Path) -> None:
    (etc,) = [step for step in plan(tmp_path) if step.target.startswith("/etc")]
    assert (etc.kind, etc.target) == ("overlay", "/etc")
    assert set(etc.flags) == {"ro", "nosuid", "nodev"}
    host = os.path.realpath("/etc")
    assert etc.data == [str(tmp_path / "our-etc"), str(tmp_path / "hidden"), host]


def test_a_mount_of_the_descriptor_comes_after_etc(tmp_path: Path) -> None:
    native = {"mounts": [{"source": str(tmp_path), "target": "/etc/ssl/private"}]}
    order = [step.target for step in plan(tmp_path, native)]
    assert order.index("/etc") < order.index("/etc/ssl/private")


@pytest.mark.parametrize("kind", ["directory", "link", "file", "absent"])
def test_the_etc_of_an_image_is_a_layer_only_if_it_is_a_directory(
    tmp_path: Path, kind: str
) -> None:
    image = tmp_path / "image"
    image.mkdir()
    if kind == "directory":
        (image / "etc").mkdir()
    elif kind == "link":
        (image / "etc").symlink_to(tmp_path)
    elif kind == "file":
        (image / "etc").touch()
    steps = plan(tmp_path, {"rootfs": "image"}, image=image)
    (etc,) = [step for step in steps if step.target == "/etc"]
    ours = str(tmp_path / "our-etc")
    if kind == "directory":
        assert (etc.kind, etc.data) == ("overlay", [ours, f"{image}/etc"])
    else:
        assert (etc.kind, etc.source) == ("bind", ours)


def test_a_tmpfs_of_the_descriptor_takes_the_place_of_ours(tmp_path: Path) -> None:
    steps = plan(tmp_path, {"tmpfs": [{"target": "/tmp", "size": "1M"}]})
    (scratch,) = [step for step in steps if step.target == "/tmp"]
    assert "size=1048576" in scratch.data
    assert "mode=1777" in scratch.data
    assert "uid=7,gid=8" in scratch.data


def test_an_image_is_shown_at_app_or_as_the_whole_root(tmp_path: Path) -> None:
    image = tmp_path / "image"
    for name in ("bin", "opt", "proc", "dev", "data", "etc"):
        (image / name).mkdir(parents=True)
    (image / "link").symlink_to("bin")
    beside = plan(tmp_path, image=image)
    assert ("/app", str(image)) in {(s.target, s.source) for s in beside}
    whole = plan(tmp_path, {"rootfs": "image"}, image=image)
    sources = {step.target: step.source for step in whole}
    assert sources["/bin"] == f"{image}/bin"
    assert sources["/link"] == "bin"
    # What init builds itself is never an image's, and of the host nothing is left.
    assert "/proc" not in sources
    assert "/dev" not in sources
    assert sources["/data"] == str(tmp_path)
    assert "/usr" not in sources
    assert "/app" not in sources
