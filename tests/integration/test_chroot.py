"""Instances started from a chroot, where the kernel makes no user namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import scale
from forked import run_forked
from nodes import remove_node

from nativert.isolation import chroot
from nativert.isolation.syscalls import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MS_BIND,
    MS_REC,
    mount,
    unshare,
)

pytestmark = pytest.mark.root

NATIVERT = Path(sys.executable).with_name("nativert")


def enter_chroot(tree: Path) -> None:
    """Go into a chroot whose directory is the host's root, mounted a second time."""
    tree.mkdir()
    mount("/", str(tree), flags=MS_BIND | MS_REC)
    os.chroot(tree)
    os.chdir("/")


def test_a_chroot_is_told_from_a_root() -> None:
    def body() -> None:
        assert not chroot.chrooted()

    run_forked(body)


def test_the_tree_becomes_a_root_in_which_user_namespaces_can_be_made(tmp_path: Path) -> None:
    def body() -> None:
        enter_chroot(tmp_path / "tree")
        assert chroot.chrooted()
        with pytest.raises(PermissionError):
            unshare(CLONE_NEWUSER)
        before = os.stat("/etc").st_ino
        chroot.make_root()
        assert not chroot.chrooted()
        assert os.getcwd() == "/"
        assert os.stat("/etc").st_ino == before
        unshare(CLONE_NEWUSER)

    run_forked(body, flags=CLONE_NEWNS)


def test_an_application_runs_from_a_chroot(tmp_path: Path) -> None:
    descriptor = tmp_path / "app.yaml"
    descriptor.write_text(
        "id: a\nname: a\nhypervisor: BARE\ncommand: {binary: echo, args: [from a chroot]}\n"
    )
    node = [str(NATIVERT), "--here", "--root", str(tmp_path / "node")]

    def body() -> None:
        enter_chroot(tmp_path / "tree")
        ran = subprocess.run(
            [*node, "run", descriptor], capture_output=True, text=True, timeout=scale.LONG_S
        )
        gone = subprocess.run([*node, "gc"], capture_output=True, text=True, timeout=scale.LONG_S)
        assert (ran.stdout, ran.returncode) == ("from a chroot\n", 0), ran.stderr
        assert gone.returncode == 0, gone.stderr

    try:
        run_forked(body, flags=CLONE_NEWNS)
    finally:
        remove_node(tmp_path / "node")
