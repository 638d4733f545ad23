"""docs/fog05.md: its configuration, its program and its manifest, as they are shown."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import scale
from agents import serving
from authorities import hand_out, init
from fog05_agents import AgentDouble
from fog05_clients import free_port
from nodes import CLI

from nativert.agent import config as configuration
from nativert.agent.fog05.functions import FUNCTIONS
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

PAGE = (Path(__file__).parents[2] / "docs/fog05.md").read_text()


def block(kind: str, port: int) -> str:
    """Return the one block of a kind, with a port of the test's."""
    (found,) = re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)
    return str(found).replace("7447", str(port)).replace("x86_64", platform.machine())


def test_the_program_of_the_page_prints_what_it_says(root: Path, node: Node) -> None:
    port = free_port()
    with serving(root, config=block("toml", port)):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", block("python", port)],
            capture_output=True,
            text=True,
            timeout=scale.LONG_S,
        )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.strip()
    assert f"prints `{printed!s}`".replace("\n", "\\n") in PAGE
    assert node.list() == []


def test_the_program_of_the_page_works_with_credentials(
    root: Path, node: Node, tmp_path: Path
) -> None:
    port = free_port()
    shown = tmp_path / "authority/clients/client/credentials.toml"
    init("--dir", tmp_path / "authority", "--node", "a")
    hand_out(tmp_path / "authority", "a", root, port)
    command = [sys.executable, "-W", "ignore", "-c", block("python", port)]
    with serving(root):
        done = subprocess.run(
            command,
            env=os.environ | {"NATIVERT_ZENOH_CREDENTIALS": str(shown)},
            capture_output=True,
            text=True,
            timeout=scale.LONG_S,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() in PAGE
        without = subprocess.run(command, capture_output=True, text=True, timeout=scale.LONG_S)
    assert without.returncode != 0
    assert "may want TLS and credentials" in without.stderr


def test_the_authority_of_the_page_is_made(tmp_path: Path) -> None:
    lines = [x.strip() for x in PAGE.splitlines() if x.startswith("nativert zenoh init -")]
    assert len(lines) == 2
    for line in lines:
        done = subprocess.run(
            [*CLI, *line.split()[1:]], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "fleet/nodes").iterdir()) == [
        "edge-1", "edge-2", "edge-3",
    ]  # fmt: skip
    assert (tmp_path / "fleet/clients/laptop/credentials.toml").is_file()


def test_the_manifest_of_the_page_registers(root: Path, node: Node, tmp_path: Path) -> None:
    port = free_port()
    shown = block("json", port)
    path = tmp_path / "MANIFEST.json"
    path.write_text(shown)
    double = AgentDouble(port, json.loads(shown)["configuration"]["nodeid"])
    environment = os.environ | {"NATIVERT_ROOT": str(root)}
    process = subprocess.Popen([*CLI, "plugin", str(path)], env=environment)
    try:
        assert double.plugin()["uuid"] == json.loads(shown)["uuid"]
    finally:
        process.terminate()
        assert process.wait(scale.LONG_S) == 0
        double.close()


def test_the_page_has_every_key_and_function() -> None:
    keys = configuration.Zenoh.__struct_fields__
    assert [key for key in keys if f"| `{key}` |" not in PAGE] == []
    assert [name for name in FUNCTIONS if name != "heartbeat" and f"`{name}`" not in PAGE] == []
    assert configuration.parse(block("toml", 7447).encode(), source="page").zenoh is not None
