"""`nativert run` with an agent ends, streams and obeys as it does without one.

The tests are those of test_run_command.py; here the command drives the instance by the agent.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import Agent, serving
from test_run_command import *  # noqa: F403

from nativert.runtime.node import Node


@pytest.fixture(autouse=True)
def agent(root: Path, node: Node) -> Iterator[Agent]:
    with serving(root) as one:
        yield one
        assert "fault" not in one.log.read_text()
