"""`nativert zenoh init`: what it prints, what goes together, and for whom it makes what."""

from __future__ import annotations

import json
import shutil
import socket

import pytest

from nativert.agent import config as configuration
from nativert.agent.authority import installation

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


def test_it_is_for_this_host_unless_told(nativert, tmp_path):
    result = nativert("zenoh", "init", "--root", str(tmp_path), "-o", "json")
    assert result.code == 0
    etc = tmp_path / "etc/nativert"
    told = json.loads(result.out)
    assert told["authority"] == str(etc / "zenoh-authority")
    assert [path.rpartition("zenoh-authority/")[2] for path in told["made"]] == [
        f"nodes/{socket.gethostname()}", "clients/client",
    ]  # fmt: skip
    assert str(etc / "conf.d/zenoh.toml") in told["installed"]
    zenoh = configuration.read(etc / "config.toml", needed=False).zenoh
    assert zenoh is not None
    assert zenoh.connect == ()
    again = nativert("zenoh", "init", "--root", str(tmp_path))
    assert again.code == 4
    assert "is there already" in again.err
    assert nativert("zenoh", "init", "--root", str(tmp_path), "--force").code == 0


def test_it_says_where_things_go(nativert, tmp_path):
    directory = tmp_path / "d"
    result = nativert("zenoh", "init", "--dir", directory, "--node", "a=10.0.0.1", "--plugin", "p")
    assert result.code == 0
    assert f"copy {directory}/nodes/a/. to its /etc/nativert" in result.out
    assert f"keep {directory}/ca.key to yourself" in result.out
    assert "plugin p" in result.out
    more = nativert("zenoh", "init", "--ca", directory, "--client", "laptop")
    assert more.code == 0
    assert (directory / "clients/laptop/credentials.toml").is_file()
    missing = nativert("zenoh", "init", "--ca", tmp_path / "none", "--client", "laptop")
    assert missing.code == 3


@pytest.mark.parametrize("extra", [("--port", "1"), ("--password",), ("--dir", "x")])
def test_an_authority_that_is_there_has_its_port_and_kind(nativert, tmp_path, extra):
    result = nativert("zenoh", "init", "--ca", tmp_path, "--node", "a", *extra)
    assert result.code == 2
    assert "--ca goes with none of" in result.err


def test_what_cannot_be_installed_leaves_nothing(nativert, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(installation, "install", full)
    result = nativert("zenoh", "init", "--root", str(tmp_path))
    assert result.code == 1
    assert "No space left" in result.err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
