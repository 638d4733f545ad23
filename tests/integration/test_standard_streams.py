"""What an application can do with the streams it was given."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import scale

from nativert.runtime.node import Node
from nativert.store.claims import Claims

pytestmark = pytest.mark.root

NATIVERT = Path(sys.executable).with_name("nativert")

DESCRIPTOR = """\
id: streams
name: streams
command: {binary: sh, args: ["-c", "echo one > /dev/stdout; echo two > /dev/stderr"]}
hypervisor: BARE
"""


@pytest.fixture
def node_root(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "node"
    yield root
    with Node(root, here=True) as node:
        for row in node.list():
            node.remove(row.instance, force=True)
        node.gc()
        Claims().release_node(node._context.identity.id)


def test_the_streams_can_be_opened_by_name(node_root: Path) -> None:
    """Programs that log to /dev/stdout open the pipe anew, as a user that is not root."""
    done = subprocess.run(
        [NATIVERT, "--here", "--root", node_root, "run", "-"],
        input=DESCRIPTOR,
        capture_output=True,
        text=True,
        timeout=scale.LONG_S,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("one\n", "two\n", 0)
