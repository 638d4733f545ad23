"""scripts/install and scripts/uninstall, where the system's directories are copies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import scale
from nodes import make_document
from wheels import SCRIPTS, make_wheelhouse

pytestmark = [
    pytest.mark.root,
    pytest.mark.netns,
    pytest.mark.slow,
    pytest.mark.host_only,
    pytest.mark.timeout(600),
]

# What an installation writes to, here with an upper layer of its own.
COPIED = ("etc", "usr/local", "opt", "var/lib")
PREPARE = """
set -eu
mount --make-rprivate /
for directory in {copied}; do
    mkdir -p "$UPPER/$directory/upper" "$UPPER/$directory/work"
    mount -t overlay overlay -o \
"lowerdir=/$directory,upperdir=$UPPER/$directory/upper,workdir=$UPPER/$directory/work" "/$directory"
done
mount -t tmpfs tmpfs /run
hold() {{ echo held; read -r _; }}
"""

Shell = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheelhouse(tmp_path_factory.mktemp("made") / "wheels")


@pytest.fixture
def shell(tmp_path: Path, wheelhouse: Path) -> Iterator[Shell]:
    """Runs a script in the namespace, the same one for a whole test."""
    upper = tmp_path / "upper"
    upper.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(upper)], check=True)
    environment = os.environ | {
        "UPPER": str(upper),
        "WHEELS": str(wheelhouse),
        # The namespace is this test's own, and known as such.
        "NATIVERT_HERE": "1",
        "NATIVERT_PYTHON": os.path.realpath(sys.executable),
    }
    prepare = PREPARE.format(copied=" ".join(COPIED))
    holder = subprocess.Popen(
        ["unshare", "--mount", "bash", "-c", prepare + "hold"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"

        def run(script: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["nsenter", "--mount", f"--target={holder.pid}", "bash", "-euc", script],
                env=environment,
                capture_output=True,
                text=True,
                timeout=scale.seconds(120),
            )

        yield run
    finally:
        holder.communicate(b"\n", timeout=scale.LONG_S)
        subprocess.run(["umount", str(upper)], check=True)


def good(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def written(upper: Path) -> set[str]:
    """Return what the namespace has and the host has not."""
    found = set()
    for directory in COPIED:
        for path in (upper / directory / "upper").rglob("*"):
            if not path.is_dir() or path.is_symlink():
                found.add(f"/{directory}/{path.relative_to(upper / directory / 'upper')}")
    return found


def test_it_is_installed_upgraded_and_removed(shell: Shell, tmp_path: Path) -> None:
    descriptor = tmp_path / "app.json"
    descriptor.write_text(
        json.dumps(make_document(name="app", shell="echo kept > /data/file; sleep 1000", veth=True))
    )
    done = good(shell('"$WHEELS/install" --wheelhouse "$WHEELS"'))
    assert "systemd is not at work here" in done
    files = written(tmp_path / "upper")
    assert {
        "/etc/systemd/system/nativert-agent.service",
        "/etc/systemd/system/nativert-shutdown.service",
        "/usr/local/bin/nativert",
        "/usr/local/share/bash-completion/completions/nativert",
        "/usr/local/share/zsh/site-functions/_nativert",
        "/usr/local/share/fish/vendor_completions.d/nativert.fish",
        "/opt/nativert/current",
    } <= files
    unit = good(shell("cat /etc/systemd/system/nativert-*.service"))
    assert "ExecStart=/opt/nativert/current/bin/nativert agent" in unit
    assert "@" not in unit
    again = good(shell('"$WHEELS/install" --wheelhouse "$WHEELS"'))
    assert "nothing to do" in again
    good(shell(f"nativert run -d {descriptor}; nativert doctor"))
    running = shell("/opt/nativert/current/uninstall")
    assert running.returncode == 1
    assert "1 instances run" in running.stderr
    good(shell("until grep -qs kept /var/lib/nativert/i/*/data/file; do sleep 0.1; done"))
    # What was and what it wrote outlives nativert, and is there again with the next one.
    kept = good(shell("/opt/nativert/current/uninstall --force"))
    assert "/var/lib/nativert and /etc/nativert are kept" in kept
    left = written(tmp_path / "upper")
    assert {path for path in left if not path.startswith("/var/lib/nativert/")} == set()
    good(shell('"$WHEELS/install" --wheelhouse "$WHEELS"'))
    (row,) = json.loads(good(shell("nativert -o json ps -a")))
    assert (row["name"], row["state"], row["end"]["reason"]) == ("app", "DEFINED", "node-shutdown")
    good(shell("grep -q kept /var/lib/nativert/i/*/data/file"))
    # Removed from the wheelhouse this time, with all that there was.
    purged = good(shell('"$WHEELS/uninstall" --purge'))
    assert "nothing of nativert is left" in purged
    left = written(tmp_path / "upper")
    # The registry knows the nodes of other roots.
    assert left - {"/var/lib/nativert/host.json"} == set()
    assert good(shell("ls -A /run")).split() in ([], ["nativert.host.lock"])


def test_a_release_that_was_not_finished_is_made_anew(shell: Shell) -> None:
    good(shell('"$WHEELS/install" --wheelhouse "$WHEELS"'))
    good(shell("cd /opt/nativert/current; rm -r complete lib/python*/site-packages/click"))
    good(shell('"$WHEELS/install" --wheelhouse "$WHEELS"; nativert version'))


def test_what_cannot_be_is_refused_before_anything_changes(
    shell: Shell, wheelhouse: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(wheelhouse, other)
    (other / "platform").write_text("Python 3.99 linux-vax\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    install = '"$WHEELS/install"'
    for script, why in (
        (f"{install} --wheelhouse {other}", "is for Python 3.99 linux-vax, and this is"),
        (f"{install} --wheelhouse {empty}", "is no wheelhouse"),
        (install, "this is no checkout"),
        (f"{install} --wheelhouse $WHEELS --prefix '/opt/a b'", "only letters"),
        (f"NATIVERT_PYTHON=/bin/true {install} --prefix / --wheelhouse $WHEELS", "only letters"),
        (f"NATIVERT_PYTHON=/bin/false {install} --wheelhouse $WHEELS", "is not Python 3.11"),
        ('"$WHEELS/uninstall"', "nothing is installed in /opt/nativert"),
    ):
        refused = shell(script)
        assert refused.returncode == 1, script
        assert why in refused.stderr, refused.stderr
        assert "/usr/local/bin/nativert" not in written(tmp_path / "upper")
    assert shell(f"{install} --what").returncode == 2


def test_a_wheel_that_was_changed_is_refused(
    shell: Shell, wheelhouse: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(wheelhouse, changed)
    wheel = next(changed.glob("click-*.whl"))
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    refused = shell(f'"$WHEELS/install" --wheelhouse {changed}')
    assert refused.returncode != 0
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert "/opt/nativert/current" not in written(tmp_path / "upper")


def test_the_wheelhouse_is_all_that_an_empty_environment_needs(tmp_path: Path) -> None:
    made = tmp_path / "wheels"
    python = os.path.realpath(sys.executable)
    environment = os.environ | {"NATIVERT_PYTHON": python}
    done = subprocess.run(
        [SCRIPTS / "wheelhouse", made], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    listed = (made / "debian-packages").read_text().split()
    assert {"libcap2", "libseccomp2", "nftables", "python3-venv"} <= {*listed}
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    fresh = tmp_path / "venv/bin/python"
    without = ["--no-index", "--find-links", made, "--require-hashes"]
    nowhere = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": "/dev/null"}
    subprocess.run(
        [fresh, "-m", "pip", "install", "--quiet", *without, "-r", made / "requirements.txt"],
        env=nowhere,
        check=True,
    )
    imported = "import prctl, pyseccomp, aiohttp, pyroute2, cgroupspy, nativert.agent.service"
    subprocess.run([fresh, "-c", imported], check=True)
    told = subprocess.run(
        [tmp_path / "venv/bin/nativert", "states"], check=True, capture_output=True, text=True
    )
    assert "RUNNING" in told.stdout
