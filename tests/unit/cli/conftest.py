"""The command line in this process, against a node in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
from cli_fake_node import FakeNode

from nativert.cli import context
from nativert.cli.main import main


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    fake = FakeNode()
    monkeypatch.setattr(context, "open_node", fake.open)
    monkeypatch.delenv("NATIVERT_ROOT", raising=False)
    return fake


@pytest.fixture
def nativert(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def run(*args: str) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main(args)
        out, err = capfd.readouterr()
        code = exit_.value.code
        assert isinstance(code, int)
        return Result(code, out, err)

    return run
