"""The published client of fog05, unmodified, and agents that it talks to."""

from __future__ import annotations

import json
import platform
import socket
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import scale
from nodes import make_document

from nativert.fog05 import install

install()
with warnings.catch_warnings():
    # Its sources compare with `is not ''`, and its classes are made for older Pythons.
    warnings.simplefilter("ignore")
    from fog05 import FIMAPI
    from fog05_sdk.interfaces.FDU import FDU

LONG = scale.LONG_S


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def config(port: int, *others: int, more: str = "") -> str:
    """An agent's configuration: listen at *port*, connect to *others*."""
    connect = json.dumps([f"tcp/127.0.0.1:{other}" for other in others])
    return f'[zenoh]\nlisten = ["tcp/127.0.0.1:{port}"]\nconnect = {connect}\n{more}'


def descriptor(**fields: Any) -> FDU:
    """A descriptor as a user of the client writes it."""
    document = make_document(**fields)
    native = document.pop("native", None)
    if native:
        script = "#nativert\n" + json.dumps(native)
        document["configuration"] = {"conf_type": "SCRIPT", "script": script}
    document["uuid"] = str(uuid.uuid4())
    for name in ("storage", "interfaces", "io_ports", "connection_points", "depends_on"):
        document.setdefault(name, [])
    document.setdefault("migration_kind", "COLD")
    requirements = {
        "cpu_arch": "", "cpu_min_freq": 0, "cpu_min_count": 1, "ram_size_mb": 16.0,
        "storage_size_gb": 0.0,
    }  # fmt: skip
    given = document.get("computation_requirements") or {}
    document["computation_requirements"] = requirements | {"cpu_arch": platform.machine()} | given
    return FDU(document)


@contextmanager
def client(port: int) -> Iterator[FIMAPI]:
    """A client that talks to the agent at *port*."""
    api = FIMAPI(f"127.0.0.1:{port}")
    try:
        yield api
    finally:
        api.close()
        api.executor.shutdown(wait=False, cancel_futures=True)


def in_time(call: Callable[[], Any]) -> Any:
    """Return what *call* returns; the client itself would wait for ever."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as e:
            found.append(e)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(LONG)
    assert found, "the client still waits"
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]
