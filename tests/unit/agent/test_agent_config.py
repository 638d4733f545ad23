"""The configuration: defaults, strictness, and what may be served where."""

from __future__ import annotations

from pathlib import Path

import pytest

from nativert.agent.config import Config, Zenoh, ZenohAccess, ZenohTls, parse, read
from nativert.errors import Code, NativertError

EXAMPLE = Path(__file__).parents[3] / "examples" / "config.toml"
TLS = '[zenoh.tls]\nca = "a"\ncertificate = "c"\nkey = "/k"'


def test_an_absent_file_is_an_empty_one(tmp_path: Path) -> None:
    assert read(tmp_path / "none.toml", needed=False) == Config() == parse(b"", source="x")


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(NativertError, match="no such file"):
        read(tmp_path / "none.toml", needed=True)


def test_the_example_says_the_defaults() -> None:
    assert read(EXAMPLE, needed=True) == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "c.toml: x: is not a known field"),
        ("[api]\ngrup = 1", "c.toml: api.grup: is not a known field"),
        ('[api]\nmax_requests = "a"', "c.toml: api.max_requests: cannot be 'a'"),
        ("[api]\nmax_requests = 1", "api.max_requests: must be at least 16"),
        ("[api]\nclient_timeout_s = 0", "api.client_timeout_s: must be more than 0"),
        ("[monitor]\ninterval_s = 0.01", "monitor.interval_s: must be between"),
        ('[api.tcp]\naddress = "0.0.0.0:1"', "without TLS only a loopback"),
        ('[api.tcp]\naddress = "[::]:1"', "without TLS only a loopback"),
        ('[api.tcp]\naddress = "host:1"', "is not IP:PORT"),
        ('[api.tcp]\naddress = "127.0.0.1:99999"', "is not IP:PORT"),
        ('[api.tcp]\naddress = "127.0.0.1:1"\nkey = "k"', "all three, or none"),
        ('[zenoh]\nlisten = ["tcp/0.0.0.0:7447"]', "zenoh.listen: tcp/0.0.0.0:7447: without zenoh"),
        ('[zenoh]\nlisten = ["tcp/host:7447"]', "without zenoh.tls only a loopback"),
        ('[zenoh]\nlisten = ["udp/[::]:7447"]', "without zenoh.tls only a loopback"),
        ('[zenoh]\nlisten = ["tls/host:7447"]', "without zenoh.tls only a loopback"),
        (f'[zenoh]\nlisten = ["tcp/127.0.0.1:7447"]\n{TLS}', "with zenoh.tls there is no"),
        (f'[zenoh]\nlisten = []\nconnect = ["tcp/a:1"]\n{TLS}', "zenoh.connect: tcp/a:1: with"),
        ('[zenoh.access]\nclients = ["me"]', "zenoh.access: says who may"),
        ('[zenoh.tls]\nca = "a"', "zenoh.tls.certificate: is required"),
        ("[zenoh]\nstatus_interval_s = 0", "zenoh.status_interval_s: must be between"),
        ("[zenoh]\nlock = 1", "zenoh.lock: is not a known field"),
        ('log_level = "loud"', "log_level"),
        ("a =", "c.toml: Invalid value"),
    ],
)
def test_what_is_wrong_is_refused_with_its_path(text: str, message: str) -> None:
    with pytest.raises(NativertError) as refused:
        parse(text.encode(), source="c.toml")
    assert refused.value.code is Code.DESCRIPTOR
    assert message in refused.value.message


def test_an_address_of_the_network_needs_certificates() -> None:
    tls = 'certificate = "c"\nkey = "k"\nclient_ca = "a"'
    tcp = parse(f'[api.tcp]\naddress = "[::]:8420"\n{tls}'.encode(), source="x").api.tcp
    assert tcp is not None
    assert tcp.endpoint == ("::", 8420)
    assert tcp.tls


@pytest.mark.parametrize(
    "text",
    [
        'listen = ["tcp/127.0.0.1:1", "tcp/[::1]:1", "tls/127.0.0.1:1"]',
        f'listen = ["tls/0.0.0.0:1", "tls/127.0.0.1:1"]\n{TLS}',
        'insecure = true\nlisten = ["tcp/0.0.0.0:1"]',
        "listen = []",
        "",
    ],
)
def test_where_a_node_may_listen(text: str) -> None:
    assert parse(f"[zenoh]\n{text}".encode(), source="x").zenoh is not None


def test_the_example_has_every_key_of_zenoh() -> None:
    section = EXAMPLE.read_text().split("# [zenoh]")[1].split("\n\n")[0]
    lines = ["[zenoh]", *(line.removeprefix("# ") for line in section.splitlines()[1:])]
    assert parse("\n".join(lines).encode(), source="x").zenoh == Zenoh()
    for part, tables in ((Zenoh, ("tls", "access")), (ZenohTls, ()), (ZenohAccess, ())):
        names = [name for name in part.__struct_fields__ if name not in tables]
        assert [name for name in names if f"# {name} = " not in EXAMPLE.read_text()] == []
    tables = EXAMPLE.read_text().split("# [zenoh.tls]")[1].split("\n\n")[0]
    lines = ["[zenoh.tls]", *(line.removeprefix("# ") for line in tables.splitlines()[1:])]
    text = "[zenoh]\nlisten = []\n" + "\n".join(lines)
    zenoh = parse(text.encode(), source="x").zenoh
    assert zenoh is not None
    assert zenoh.access == ZenohAccess()
    assert zenoh.tls is not None


def test_tables_may_be_in_files_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    parts = tmp_path / "conf.d"
    parts.mkdir()
    (parts / "zenoh.toml").write_text(f'[zenoh]\nlisten = ["tls/0.0.0.0:1"]\n{TLS}')
    (parts / "zenoh.toml.bak").write_text("nothing of it")
    alone = read(path, needed=False)
    assert alone.zenoh is not None
    assert alone.zenoh.tls == ZenohTls(ca=f"{tmp_path}/a", certificate=f"{tmp_path}/c", key="/k")
    path.write_text('log_level = "debug"\n')
    both = read(path, needed=True)
    assert both.log_level == "debug"
    assert both.zenoh == alone.zenoh
    path.write_text("[zenoh]\n")
    with pytest.raises(NativertError, match=r"zenoh\.toml: zenoh is in another file already"):
        read(path, needed=True)


def test_insecure_is_an_option_too(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[zenoh]\nlisten = ["tcp/0.0.0.0:1"]\n')
    with pytest.raises(NativertError, match=r"zenoh init.*--insecure"):
        read(path, needed=True)
    told = read(path, needed=True, insecure=True).zenoh
    assert told is not None
    assert told.insecure
    path.write_text("")
    assert read(path, needed=True, insecure=True).zenoh is None
