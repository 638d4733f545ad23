"""The TCP port with TLS: only who has a certificate of the configured authority is served."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import scale
from agents import Agent, serving
from nodes import start, until

from nativert.runtime.node import Node

pytestmark = [pytest.mark.root]

PORT = 25492


class Pair(NamedTuple):
    """A certificate and its key."""

    certificate: Path
    key: Path


def issue(directory: Path, name: str, *extensions: str, by: Pair | None = None) -> Pair:
    """Make a key and a certificate for it, signed *by* an authority or by itself."""
    made = Pair(directory / f"{name}.crt", directory / f"{name}.key")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={name}"]
    command += ["-keyout", str(made.key), "-out", str(made.certificate)]
    for extension in extensions:
        command += ["-addext", extension]
    if by is not None:
        command += ["-CA", str(by.certificate), "-CAkey", str(by.key)]
        command += ["-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run(command, check=True, capture_output=True)
    return made


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Authority and server of the node, clients of it, and others' ones."""
    assert shutil.which("openssl"), "the openssl command makes the certificates"
    top = tmp_path_factory.mktemp("tls")
    ours, theirs = issue(top, "ours"), issue(top, "theirs")
    for_clients = "extendedKeyUsage=clientAuth"
    return {
        "ours": ours,
        "server": issue(top, "server", "subjectAltName=IP:127.0.0.1", by=ours),
        "client": issue(top, "client", for_clients, by=ours),
        "server-only": issue(top, "server-only", "extendedKeyUsage=serverAuth", by=ours),
        "stranger": issue(top, "stranger", for_clients, by=theirs),
        "self-signed": issue(top, "self-signed", for_clients),
    }


@pytest.fixture
def agent(root: Path, node: Node, pairs: dict[str, Pair]) -> Iterator[Agent]:
    config = (
        f'[api]\nmax_requests = 16\n[api.tcp]\naddress = "127.0.0.1:{PORT}"\n'
        f'certificate = "{pairs["server"].certificate}"\nkey = "{pairs["server"].key}"\n'
        f'client_ca = "{pairs["ours"].certificate}"\n'
    )
    with serving(root, config=config) as one:
        yield one
        log = one.log.read_text()
        assert "fault" not in log
        assert "Traceback" not in log


def client(pairs: dict[str, Pair], shows: str | None) -> ssl.SSLContext:
    """Return what a client has that trusts the node, and *shows* a certificate."""
    context = ssl.create_default_context(cafile=str(pairs["ours"].certificate))
    if shows is not None:
        context.load_cert_chain(*pairs[shows])
    return context


def ask(context: ssl.SSLContext | None, method: str = "GET", path: str = "/v1/instances") -> int:
    """Return the status of an answer; OSError or HTTPException where there is none."""
    timeout_s = scale.seconds(20)
    connection = (
        http.client.HTTPConnection("127.0.0.1", PORT, timeout=timeout_s)
        if context is None
        else http.client.HTTPSConnection("127.0.0.1", PORT, timeout=timeout_s, context=context)
    )
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        json.loads(answer.read())
        return answer.status
    finally:
        connection.close()


def refused(context: ssl.SSLContext | None) -> None:
    """Check that nothing is answered to who would pause the instance."""
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        ask(context, "POST", "/v1/instances/app/pause")


def test_who_has_our_certificate_is_served(agent: Agent, pairs: dict[str, Pair]) -> None:
    good = client(pairs, "client")
    assert ask(good) == 200
    assert ask(good, "POST", "/v1/instances/app/pause") == 404
    # Also one that is nobody's process on this host: the certificate is what counts.
    assert agent.ask("GET", "/v1/instances") == (200, [])


@pytest.mark.parametrize("shows", [None, "stranger", "self-signed", "server-only"])
def test_who_has_none_or_anothers_is_not(
    agent: Agent, node: Node, pairs: dict[str, Pair], shows: str | None
) -> None:
    start(node, name="app", shell="sleep 100000")
    refused(client(pairs, shows))
    assert node.get("app").state == "RUNNING"
    assert ask(client(pairs, "client"), "POST", "/v1/instances/app/pause") == 200


def test_neither_plain_http_nor_an_older_tls_is_spoken(
    agent: Agent, node: Node, pairs: dict[str, Pair]
) -> None:
    start(node, name="app", shell="sleep 100000")
    refused(None)
    old = client(pairs, "client")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    refused(old)
    assert node.get("app").state == "RUNNING"


def test_a_client_that_does_not_trust_the_node_says_nothing(
    agent: Agent, pairs: dict[str, Pair]
) -> None:
    trusts_others = ssl.create_default_context(cafile=str(pairs["stranger"].certificate))
    trusts_others.load_cert_chain(*pairs["client"])
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(trusts_others)


def test_a_crowd_that_shakes_no_hands_is_bounded(agent: Agent, pairs: dict[str, Pair]) -> None:
    """Those beyond `max_requests` are turned away, the socket of root serves all the while."""
    crowd = [socket.create_connection(("127.0.0.1", PORT)) for _ in range(64)]
    try:
        until(lambda: sum(map(ended, crowd)) == len(crowd) - 16, what="the others are cut off")
        assert agent.ask("GET", "/healthz")[0] == 200
    finally:
        for sock in crowd:
            sock.close()
    until(lambda: served(client(pairs, "client")), what="there is room again")


def ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def served(context: ssl.SSLContext) -> bool:
    try:
        return ask(context) == 200
    except OSError:
        return False


@pytest.mark.parametrize("key", ["client", None])
def test_files_that_do_not_belong_together_start_no_agent(
    root: Path, node: Node, pairs: dict[str, Pair], cli: object, key: str | None
) -> None:
    file = root.parent / "config.toml"
    other = pairs[key].key if key else root / "no-such-file"
    file.write_text(
        f'[api.tcp]\naddress = "127.0.0.1:{PORT}"\n'
        f'certificate = "{pairs["server"].certificate}"\nkey = "{other}"\n'
        f'client_ca = "{pairs["ours"].certificate}"\n'
    )
    assert callable(cli)
    done = cli("agent", "--config", str(file))
    assert done.returncode == 2
    assert "cannot load the certificates" in done.stderr
