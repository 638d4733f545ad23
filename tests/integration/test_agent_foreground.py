"""`nativert run` with an agent ends, streams and obeys as it does without one.

The tests are those of test_run_command.py; here the command drives the instance by the agent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agents import Agent, serving
from test_run_command import *  # noqa: F403
from test_run_command import STILL, Foreground

from nativert.runtime.node import Node


@pytest.fixture(autouse=True)
def agent(root: Path, node: Node, request: pytest.FixtureRequest) -> Iterator[Agent]:
    stands_still = "starter" in request.fixturenames
    with serving(root, env={"NATIVERT_FAILPOINTS": STILL} if stands_still else None) as one:
        yield one
        assert "fault" not in one.log.read_text()


@pytest.fixture
def starter(agent: Agent) -> Callable[[Foreground], int]:
    return lambda _run: agent.process.pid
