"""nativert installed in this machine as an operator would, and what systemd says of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import scale
from nodes import until
from wheels import make_wheelhouse

WHEELS = Path("/root/wheels")
COMMAND = "/usr/local/bin/nativert"
AGENT, SHUTDOWN = "nativert-agent.service", "nativert-shutdown.service"
# An agent that starts compiles nothing, but imports much.
START_S = scale.seconds(60)


def run(*argv: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command as an operator at a login; its output is told where it fails."""
    done = subprocess.run(
        argv,
        env={"PATH": os.environ["PATH"], "HOME": "/root", "NATIVERT_PYTHON": "/usr/bin/python3"},
        capture_output=True,
        text=True,
        timeout=scale.seconds(120),
    )
    if ok:
        assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def install(*options: str, version: str = "") -> str:
    """Install what this checkout has, or the same with another *version*; return what it says."""
    wheels = Path(f"{WHEELS}-{version}")
    if not wheels.exists():
        make_wheelhouse(wheels, version=version)
    return run(str(wheels / "install"), "--wheelhouse", str(wheels), *options).stdout


def nativert(*argv: str) -> Any:
    """Return the JSON that a command prints."""
    return json.loads(run(COMMAND, "-o", "json", *argv).stdout)


def unit(name: str, *properties: str) -> dict[str, str]:
    """Return properties of a unit."""
    asked = [f"--property={name}" for name in properties]
    lines = run("systemctl", "show", *asked, name).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


def agent_pid() -> int:
    """Return the pid of the agent, 0 where it does not run."""
    return int(unit(AGENT, "MainPID")["MainPID"])


def another_agent(than: int) -> int:
    """Wait until an agent serves that is not the one with this pid; return its pid."""

    def answers() -> int:
        now = unit(AGENT, "MainPID", "ActiveState")
        return int(now["MainPID"]) if now["ActiveState"] == "active" else 0

    return until(
        lambda: (pid := answers()) not in (0, than) and pid,
        what="another agent serves",
        deadline_s=START_S,
        pause_s=0.1,
    )


def release_of(pid: int) -> str:
    """Return the release that a process runs from."""
    found = re.search(r"/opt/nativert/releases/([^/]+)/", Path(f"/proc/{pid}/maps").read_text())
    assert found is not None, Path(f"/proc/{pid}/cmdline").read_bytes()
    return found[1]


def journal(*matches: str) -> list[dict[str, str]]:
    """Return the journal's entries with all these fields."""
    lines = run("journalctl", "-o", "json", "--no-pager", *matches).stdout.splitlines()
    return [json.loads(line) for line in lines]


def going_down() -> subprocess.Popen[bytes]:
    """Have systemd reboot this machine, as an operator would."""
    return subprocess.Popen(["systemctl", "reboot"], stdout=sys.stderr)
