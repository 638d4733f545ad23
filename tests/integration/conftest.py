"""Real nodes and hosts for the tests, removed afterwards with everything that is theirs."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import scale
from movers import Pair
from network_hosts import Host, own_host
from nodes import CLI, MakeNode, remove_node, until

from nativert.runtime.node import Node

if TYPE_CHECKING:
    from three_nodes import Three


@pytest.fixture(scope="session", autouse=True)
def built_init() -> None:
    """What is tested is made from the sources that are here."""
    script = Path(__file__).parents[2] / "scripts/build_init.py"
    subprocess.run([sys.executable, script], check=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of the test's node."""
    return tmp_path / "node"


@pytest.fixture
def make_node(root: Path) -> Iterator[MakeNode]:
    """Opens nodes, as often as wanted; each root's node is removed at the end."""
    default = root
    made: dict[Path, dict[str, Any]] = {}
    with ExitStack() as opened:

        def make(root: Path | None = None, **options: Any) -> Node:
            where = root or default
            made.setdefault(where, options)
            return opened.enter_context(Node(where, **options))

        yield make
    errors = []
    for where, options in made.items():
        try:
            remove_node(where, **options)
        except Exception as e:
            errors.append(e)
    if errors:
        raise ExceptionGroup("nodes could not be removed", errors)


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    """A node of this test alone."""
    return make_node()


@pytest.fixture
def cli(root: Path, node: Node) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs one command of the CLI on the test's node."""

    def run(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"NATIVERT_ROOT": str(root)}
        return subprocess.run(
            [*CLI, *args],
            env=environment,
            **{"capture_output": True, "text": True, "timeout": scale.LONG_S, **options},
        )

    return run


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Writes a line that is seen also where the test passes."""
    writer = request.config.get_terminal_writer()
    return lambda line: writer.line(f"\n{line}")


@pytest.fixture
def seed(tell: Callable[[str], None]) -> int:
    """What faults are chosen by: NATIVERT_FAULTS_SEED, or another each time, which is told."""
    number = int(os.environ.get("NATIVERT_FAULTS_SEED") or random.randrange(1 << 32))
    tell(f"NATIVERT_FAULTS_SEED={number}")
    return number


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host with an uplink to another one, in network namespaces of their own."""
    with own_host(tmp_path) as one:
        yield one


@pytest.fixture
def pair(make_node: MakeNode, tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(make_node(tmp_path / "a"), make_node(tmp_path / "b"))
    yield pair
    for served in pair.served.values():
        served.close()


@pytest.fixture
def three(tmp_path: Path, make_node: MakeNode) -> Iterator[Three]:
    """The nodes a, b and c, which have seen each other."""
    # With Zenoh, which few tests need.
    from three_nodes import LONG, Three

    one = Three(tmp_path, make_node)
    with one.stack:
        until(one.met, deadline_s=LONG, what="all see all")
        yield one
