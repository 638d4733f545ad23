"""resolv.conf for instances: only what they can reach."""

from __future__ import annotations

from pathlib import Path

import pytest

from nativert.isolation.network.resolver import NONE_REACHABLE, resolver


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_upstreams_and_search_are_kept(tmp_path: Path) -> None:
    source = write(
        tmp_path / "resolv.conf",
        "# by hand\nsearch  example.org lan\nnameserver 192.0.2.53\n"
        "nameserver 192.0.2.54 \noptions edns0 trust-ad\nsortlist 192.0.2.0\n",
    )
    assert resolver([source]) == (
        "search example.org lan\nnameserver 192.0.2.53\nnameserver 192.0.2.54\n"
        "options edns0 trust-ad\n"
    )


@pytest.mark.parametrize("stub", ["127.0.0.53", "127.0.0.1", "::1", "fe80::1%eth0", "0.0.0.0"])
def test_a_stub_leads_to_its_upstreams(tmp_path: Path, stub: str) -> None:
    stubs = write(tmp_path / "stub", f"nameserver {stub}\nsearch stub\n")
    upstreams = write(tmp_path / "upstreams", "nameserver 192.0.2.53\n")
    assert resolver([stubs, str(tmp_path / "absent"), upstreams]) == "nameserver 192.0.2.53\n"


def test_unreachable_servers_are_left_out(tmp_path: Path) -> None:
    source = write(
        tmp_path / "resolv.conf",
        "nameserver 127.0.0.1\nnameserver 2001:db8::53\nnameserver\nnameserver 192.0.2.53\n",
    )
    assert resolver([source]) == "nameserver 192.0.2.53\n"


def test_without_any_the_text_says_so(tmp_path: Path) -> None:
    source = write(tmp_path / "resolv.conf", "nameserver 127.0.0.53\n")
    assert resolver([source, str(tmp_path / "absent")]) == NONE_REACHABLE
    assert NONE_REACHABLE.startswith("#")


def test_bytes_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_bytes(b"\xff\xfe\0\nnameserver 192.0.2.53\nsearch \xff\n")
    assert "nameserver 192.0.2.53" in resolver([str(tmp_path / "resolv.conf")])
