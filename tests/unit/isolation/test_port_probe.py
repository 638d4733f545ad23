"""Whether a port is free, against real listeners on the loopback."""

from __future__ import annotations

import errno
import socket

import pytest

from nativert.isolation.network.ports import is_free

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("probe", [None, "127.0.0.1"])
@pytest.mark.parametrize("held", ["0.0.0.0", "127.0.0.1"])
def test_a_listener_is_seen_and_its_end_too(protocol: str, probe: str | None, held: str) -> None:
    with socket.socket(socket.AF_INET, KINDS[protocol]) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((held, 0))
        if protocol == "tcp":
            holder.listen()
        port = holder.getsockname()[1]
        assert not is_free(probe, port, protocol)
    assert is_free(probe, port, protocol)


def test_time_wait_does_not_hold_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        served, _ = holder.accept()
        served.close()  # the server's side closes first and waits
        assert client.recv(1) == b""
        client.close()
    assert is_free("127.0.0.1", port, "tcp")


def test_an_address_of_somebody_else_is_an_error() -> None:
    with pytest.raises(OSError, match="bind tcp port 8080") as refusal:
        is_free("203.0.113.77", 8080, "tcp")
    assert refusal.value.errno == errno.EADDRNOTAVAIL
