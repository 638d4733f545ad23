"""sd_notify(3): both kinds of socket, and silence where nobody listens."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from nativert.agent.notify import notify, watchdog_period_s


@pytest.mark.parametrize("abstract", [True, False])
def test_the_manager_hears_it(
    abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"@nativert-{os.getpid()}" if abstract else str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert notify("READY=1", "STATUS=fine")
        assert manager.recv(100) == b"READY=1\nSTATUS=fine"


@pytest.mark.parametrize("address", ["", "/no/such/socket", "vsock:1:2"])
def test_nobody_is_no_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "period_s"),
    [("3000000", None, 1.5), ("3000000", "1", None), ("", None, None), ("0", None, None)],
)
def test_the_watchdog_is_fed_at_half_of_its_time(
    usec: str, pid: str | None, period_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid or str(os.getpid()))
    assert watchdog_period_s() == period_s
