"""Vagrant's own opinion of vagrant/Vagrantfile; needs neither a box nor a network."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

VAGRANT = Path(__file__).resolve().parents[2] / "vagrant"

pytestmark = pytest.mark.vagrant


@pytest.mark.parametrize("provider", ["libvirt", "virtualbox"])
def test_the_vagrantfile_is_valid(provider: str, tmp_path: Path) -> None:
    environment = os.environ | {
        "VAGRANT_HOME": str(tmp_path / "home"),
        "VAGRANT_DOTFILE_PATH": str(tmp_path / "dotfiles"),
        "VAGRANT_DEFAULT_PROVIDER": provider,
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "VAGRANT_CWD": str(VAGRANT),
    }
    done = subprocess.run(
        ["vagrant", "validate"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
