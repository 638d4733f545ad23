"""The layers of an instance's /etc, on hosts that are not alike."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
import scale

from nativert.runtime import etc


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    """A host's /etc."""
    directory = tmp_path / "lower"
    for name in ("ssl/private", "security", "pki"):
        (directory / name).mkdir(parents=True)
    (directory / "security").chmod(0o700)
    (directory / "ipsec.d").symlink_to("elsewhere")
    return directory


def whiteouts(layer: Path) -> set[str]:
    return {
        str(path.relative_to(layer))
        for path in layer.rglob("*")
        if stat.S_ISCHR(path.lstat().st_mode) and path.lstat().st_rdev == 0
    }


def test_every_secret_that_the_host_could_have_is_hidden(tmp_path: Path, lower: Path) -> None:
    layer = etc.hidden(tmp_path / "layers", lower)
    # What the host may yet get is hidden too; directories that it lacks are not shown.
    flat = {name for name in etc.SECRET if "/" not in name}
    assert whiteouts(layer) == flat | {"ssl/private", "security/opasswd"}
    assert {path.name for path in layer.iterdir() if path.is_dir()} == {"ssl", "security", "pki"}


def test_a_directory_of_the_layer_has_the_mode_of_what_it_covers(
    tmp_path: Path, lower: Path
) -> None:
    layer = etc.hidden(tmp_path / "layers", lower)
    assert stat.S_IMODE((layer / "security").stat().st_mode) == 0o700
    (lower / "security").chmod(0o750)
    other = etc.hidden(tmp_path / "layers", lower)
    assert other != layer
    assert stat.S_IMODE((other / "security").stat().st_mode) == 0o750


def test_the_layer_is_made_once_whoever_comes_first(tmp_path: Path, lower: Path) -> None:
    made: list[Path] = []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait(timeout=scale.LONG_S)
        made.append(etc.hidden(tmp_path / "layers", lower))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1
    assert list((tmp_path / "layers").iterdir()) == [made[0]]


def test_a_failure_leaves_no_half_a_layer(
    tmp_path: Path, lower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "mknod", refuse)
        with pytest.raises(OSError, match="No space"):
            etc.hidden(tmp_path / "layers", lower)
    assert list((tmp_path / "layers").iterdir()) == []


def test_mounts_get_a_place_for_what_is_hidden_or_absent(tmp_path: Path, lower: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    mounts = [
        ("/etc/ssl/private", True),
        ("/etc/security/opasswd", False),
        ("/etc/new/deep/file", False),
        ("/etc/ipsec.d/private", True),
        ("/etc", True),
        ("/srv/etc/x", True),
    ]
    etc.place_mounts(own, lower, mounts)
    etc.place_mounts(own, lower, mounts)
    assert (own / "ssl/private").is_dir()
    assert (own / "security/opasswd").is_file()
    assert (own / "new/deep/file").is_file()
    # Through a link of the host nothing is mounted, so that it stays a link.
    assert {path.name for path in own.iterdir()} == {"ssl", "security", "new"}
    assert stat.S_IMODE((own / "security").stat().st_mode) == 0o700


def test_mounts_over_no_etc_at_all(tmp_path: Path) -> None:
    etc.place_mounts(tmp_path, None, [("/etc/a/b", True)])
    assert (tmp_path / "a/b").is_dir()
