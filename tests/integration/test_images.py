"""What only root can show of images and trees: mounts, full disks, owners."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nativert.isolation.syscalls import MNT_DETACH, MS_BIND, mount, umount2
from nativert.runtime.image import Images
from nativert.runtime.image_errors import ImageError
from nativert.runtime.local_os import LocalOs
from nativert.runtime.policy import UnpackLimits

pytestmark = pytest.mark.root
FILES = LocalOs()
RANGE = (3_000_000, 3_000_000)


@contextmanager
def mounted(
    source: str, target: Path, fstype: str = "", flags: int = 0, data: str = ""
) -> Iterator[None]:
    mount(source, str(target), fstype, flags, data)
    try:
        yield
    finally:
        umount2(str(target), MNT_DETACH)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    with mounted("tmpfs", path, "tmpfs", data="size=2m"):
        yield path


def packed(path: Path, size: int) -> str:
    with tarfile.open(path, "w") as archive:
        for i in range(4):
            info = tarfile.TarInfo(f"file{i}")
            info.size = size // 4
            archive.addfile(info, io.BytesIO(os.urandom(info.size)))
    return f"file://{path}"


def prepare(images: Images, uri: str, into: Path) -> None:
    images.prepare(uri, checksum="", format="", rootfs=False, into=into, progress=None)


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    uri = packed(tmp_path / "app.tar", 3 << 20)
    # Without the reserve the kernel's own ENOSPC is met in the middle of a file.
    images = Images(tmp_path / "cache", FILES, limits=UnpackLimits(reserve_bytes=-(1 << 40)))
    with pytest.raises(ImageError, match=r"cannot unpack the image: No space left"):
        prepare(images, uri, small_disk / "image")
    assert os.listdir(small_disk) == []
    assert os.listdir(tmp_path / "cache") == []


def test_a_full_cache_disk_is_a_clear_error(small_disk: Path, tmp_path: Path) -> None:
    uri = packed(tmp_path / "app.tar", 3 << 20)
    with pytest.raises(ImageError, match=r"cannot fetch file://.*No space left"):
        prepare(Images(small_disk / "cache", FILES), uri, tmp_path / "image")
    assert os.listdir(small_disk / "cache") == []
    assert not (tmp_path / "image").exists()


def test_unpacked_files_are_roots(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "app.tar", "w") as archive:
        info = tarfile.TarInfo("app")
        info.uid, info.gid, info.mode = 1234, 1234, 0o777
        archive.addfile(info)
    prepare(Images(tmp_path / "cache", FILES), f"file://{tmp_path}/app.tar", tmp_path / "image")
    seen = (tmp_path / "image" / "app").stat()
    assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (0, 0, 0o755)


def test_a_real_root_with_set_uid_files_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "su").write_text("")
    os.chmod(tmp_path / "root" / "su", 0o4755)
    archive = tmp_path / "root.tar"
    subprocess.run(["tar", "-C", tmp_path / "root", "-cf", archive, "."], check=True)
    with pytest.raises(ImageError, match=r"member '\./su': it is set-uid or set-gid"):
        prepare(Images(tmp_path / "cache", FILES), f"file://{archive}", tmp_path / "image")


def test_device_nodes_and_capabilities_of_gnu_tar_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    archive = tmp_path / "root.tar"
    subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
    images = Images(tmp_path / "cache", FILES)
    with pytest.raises(ImageError, match="device node"):
        prepare(images, f"file://{archive}", tmp_path / "image")
    os.unlink(root / "null")
    (root / "ping").write_text("")
    # VFS_CAP_REVISION_2, effective, CAP_NET_RAW; see capabilities(7).
    os.setxattr(
        root / "ping", "security.capability", bytes.fromhex("01000002" + "00200000" * 1 + "00" * 12)
    )
    options = ["--xattrs", "--xattrs-include=*"]
    subprocess.run(["tar", *options, "-C", root, "-cf", archive, "."], check=True)
    with pytest.raises(ImageError, match="file capabilities"):
        prepare(images, f"file://{archive}", tmp_path / "image")


def test_remove_tree_crosses_no_mount(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("untouched")
    tree = tmp_path / "tree"
    (tree / "bound").mkdir(parents=True)
    # A bind mount of the same file system has the same device number.
    with mounted(str(outside), tree / "bound", flags=MS_BIND):
        with pytest.raises(OSError, match="bound") as caught:
            FILES.remove_tree(tree)
        assert caught.value.errno == errno.EXDEV
        with pytest.raises(OSError, match="bound"):
            FILES.remove_tree(tree / "bound")
        with pytest.raises(OSError, match="bound"):
            FILES.chown_tree(tree, RANGE)
        assert (outside / "victim").read_text() == "untouched"
        assert (outside / "victim").stat().st_uid == 0
    FILES.remove_tree(tree)
    assert not tree.exists()


def test_chown_tree_gives_everything_and_follows_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("")
    (tree / "a" / "link").symlink_to(victim)
    (tree / "dir-link").symlink_to(tmp_path)
    FILES.chown_tree(tree, RANGE)
    for path in (tree, *tree.rglob("*")):
        assert (path.lstat().st_uid, path.lstat().st_gid) == RANGE
    assert victim.stat().st_uid == 0
    assert tmp_path.stat().st_uid == 0
    FILES.chown_tree(tree / "a" / "link", (0, 0))
    assert (tree / "a" / "link").lstat().st_uid == 0


def test_files_are_made_for_their_owner(tmp_path: Path) -> None:
    FILES.make_dir(tmp_path / "data", mode=0o700, owner=RANGE)
    FILES.write_file(tmp_path / "data" / "f", b"x", mode=0o600, owner=RANGE)
    for path in (tmp_path / "data", tmp_path / "data" / "f"):
        assert (path.stat().st_uid, path.stat().st_gid) == RANGE
