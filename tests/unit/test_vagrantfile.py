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
    # Vagrant looks at a provider's part only where the provider seems to be there.
    virtualbox = tmp_path / "VBoxManage"
    virtualbox.write_text("#!/bin/sh\necho 7.0.6r155176\n")
    virtualbox.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
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
