"""The text that nft is fed, what it lists, and what its refusals become."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest

from nativert.isolation.network import nftables
from nativert.isolation.network.nftables import Published, Table, parse_ports

TABLE = Table("nativert_a1b2c3", "nrt-a1b2c3", "10.70.4.0/22", "nrx-a1b2c3")


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect transactions instead of running them."""
    texts: list[str] = []
    monkeypatch.setattr(nftables, "run", texts.append)
    return texts


def test_the_table_is_created_once_and_never_added_to_blindly() -> None:
    lines = TABLE.render().splitlines()
    # `create` refuses a table that is there: the rules after it cannot double.
    assert lines[0].startswith('create table ip nativert_a1b2c3 { comment "nativert ')
    assert all(line.split()[2:4] == ["ip", "nativert_a1b2c3"] for line in lines)


def test_the_host_side_of_the_table() -> None:
    text = TABLE.render()
    assert 'iifname "nrt-a1b2c3" ip saddr 127.0.0.0/8 drop' in text
    assert 'iifname "nrt-a1b2c3" ip daddr 127.0.0.0/8 drop' in text
    assert 'ip saddr 10.70.4.0/22 oifname != { "nrt-a1b2c3", "nrx-a1b2c3" } masquerade' in text
    assert "hook output" in text
    assert "hook prerouting priority -100" in text


def test_the_mark_changes_with_the_rules() -> None:
    def mark(table: Table) -> str:
        return table.render().splitlines()[0].split('"')[1]

    assert mark(TABLE) == mark(Table("other", "nrt-a1b2c3", "10.70.4.0/22", "nrx-a1b2c3"))
    assert mark(TABLE) != mark(Table("nativert_a1b2c3", "nrt-a1b2c3", "10.70.8.0/22", "nrx-a1b2c3"))


def test_ports_are_one_transaction_in_numbers(fed: list[str]) -> None:
    ports = [
        Published(None, "tcp", 8080, "10.70.4.2", 80),
        Published("127.0.0.1", "udp", 53, "10.70.4.2", 5353),
    ]
    TABLE.add(ports)
    TABLE.remove(ports)
    TABLE.add([])
    TABLE.remove([])
    # Protocols as numbers: /etc/protocols may be missing.
    add, delete = (text.splitlines() for text in fed)
    assert add == [
        "add element ip nativert_a1b2c3 ports { 6 . 8080 : 10.70.4.2 . 80 }",
        "add element ip nativert_a1b2c3 ports_at { 127.0.0.1 . 17 . 53 : 10.70.4.2 . 5353 }",
    ]
    assert delete == [
        "delete element ip nativert_a1b2c3 ports { 6 . 8080 }",
        "delete element ip nativert_a1b2c3 ports_at { 127.0.0.1 . 17 . 53 }",
    ]


@pytest.mark.parametrize("protocol", ["tcp", 6, "6"])
def test_listed_ports_are_read_with_names_and_numbers(protocol: object) -> None:
    objects = [
        {"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "ip", "name": "nativert_a1b2c3"}},
        {
            "map": {
                "name": "ports",
                "elem": [[{"concat": [protocol, 8080]}, {"concat": ["10.70.4.2", 80]}]],
            }
        },
        {
            "map": {
                "name": "ports_at",
                "elem": [[{"concat": ["127.0.0.1", protocol, 53]}, {"concat": ["10.70.4.3", 5]}]],
            }
        },
        {"map": {"name": "empty"}},
    ]
    assert parse_ports(objects) == [
        Published(None, "tcp", 8080, "10.70.4.2", 80),
        Published("127.0.0.1", "tcp", 53, "10.70.4.3", 5),
    ]


def fake_nft(directory: Path, script: str) -> None:
    path = directory / "nft"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("/dev/stdin:1:1-2: Error: Could not process rule: File exists", errno.EEXIST),
        ("Error: Could not process rule: No such file or directory", errno.ENOENT),
        ("Error: Could not process rule: Operation not permitted", errno.EPERM),
        ("Error: syntax error, unexpected newline", errno.EIO),
        ("", errno.EIO),
    ],
)
def test_a_refusal_keeps_its_errno_and_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, number: int
) -> None:
    fake_nft(tmp_path, f"cat >/dev/null; echo '{text}' >&2; exit 1")
    monkeypatch.setattr(nftables, "PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(OSError) as refusal:
        nftables.run("flush ruleset\n")
    assert refusal.value.errno == number
    assert (text or "exit code 1") in str(refusal.value)


def test_nft_sees_neither_our_locale_nor_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nft(tmp_path, 'echo "{\\"nftables\\": [{\\"saw\\": \\"$LC_ALL$SECRET\\"}]}"')
    monkeypatch.setattr(nftables, "PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("SECRET", "canary")
    assert nftables.listing("ruleset") == [{"saw": "C"}]
