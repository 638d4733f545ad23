"""Instances are stopped when the host goes down, and by nothing less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nativert.agent import shutdown


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has systemctl say a word."""

    def say(word: str) -> None:
        program = tmp_path / "systemctl"
        program.write_text(f'#!/bin/sh\n[ "$1" = is-system-running ] && echo {word}; exit 1\n')
        program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    return say


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """Which node was asked to stop its instances."""
    asked: list[Path | None] = []

    def stop(root: Path | None) -> bool:
        asked.append(root)
        return True

    monkeypatch.setattr(shutdown, "stop_instances", stop)
    return asked


@pytest.mark.parametrize("word", ["running", "degraded", "starting", "maintenance", "offline", ""])
def test_while_the_host_is_up_nothing_is_stopped(
    says: Callable[[str], None],
    stopped: list[Path | None],
    monkeypatch: pytest.MonkeyPatch,
    word: str,
) -> None:
    says(word)
    monkeypatch.setattr("sys.argv", ["shutdown"])
    shutdown.main()
    assert stopped == []


@pytest.mark.parametrize(("word", "arguments"), [("stopping", []), ("running", ["--now"])])
def test_at_the_end_of_the_host_or_when_told_all_is_stopped(
    says: Callable[[str], None],
    stopped: list[Path | None],
    monkeypatch: pytest.MonkeyPatch,
    word: str,
    arguments: list[str],
) -> None:
    says(word)
    monkeypatch.setattr("sys.argv", ["shutdown", *arguments])
    with pytest.raises(SystemExit) as ended:
        shutdown.main()
    assert stopped == [None]
    assert not ended.value.code


def test_another_argument_is_refused(
    stopped: list[Path | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["shutdown", "--later"])
    with pytest.raises(SystemExit, match="usage"):
        shutdown.main()
    assert stopped == []


def test_a_host_without_a_node_gets_none(tmp_path: Path) -> None:
    assert shutdown.stop_instances(tmp_path / "none")
    assert not (tmp_path / "none").exists()
