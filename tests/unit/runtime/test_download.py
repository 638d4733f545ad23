from __future__ import annotations

import json
import os
import socket
import struct
import time
from pathlib import Path

import pytest
import scale
from msgspec.structs import replace
from scripted_server import Step, answer, ok, ranged, serving

from nativert.runtime.download import download
from nativert.runtime.image_errors import ImageError
from nativert.runtime.image_uri import check_uri
from nativert.runtime.protocols import DownloadLimits

LIMITS = DownloadLimits(
    max_bytes=1 << 20, connect_timeout_s=5, stall_timeout_s=5, total_timeout_s=20
)
BODY = os.urandom(100_000)
CHUNKED = "HTTP/1.1 200 OK\nTransfer-Encoding: chunked"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    directory = tmp_path / "downloads"
    directory.mkdir()
    return directory / "file"


def fetch(uri: str, target: Path, limits: DownloadLimits = LIMITS) -> None:
    download(uri, target, limits=limits, reserve_bytes=0)


def left(target: Path) -> list[str]:
    return sorted(os.listdir(target.parent))


def test_a_file_arrives_whole_with_progress(target: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    with serving(ok(BODY)) as server:
        download(
            f"{server.address}/a.tar",
            target,
            limits=LIMITS,
            progress=lambda *at: seen.append(at),
        )
    assert target.read_bytes() == BODY
    assert left(target) == ["file"]
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert "Accept-Encoding: identity" in server.requests[0]
    assert "Range:" not in server.requests[0]


@pytest.mark.parametrize(
    "step",
    [
        answer("HTTP/1.0 200 OK", BODY),
        answer(
            "HTTP/1.1 200 OK\nTransfer-Encoding: chunked", b"186a0\r\n" + BODY + b"\r\n0\r\n\r\n"
        ),
        # Bytes behind the claimed length belong to nobody.
        ok(BODY + b"more", claim=len(BODY)),
    ],
    ids=["until close", "chunked", "more than claimed"],
)
def test_lengths_are_told_in_several_ways(target: Path, step: Step) -> None:
    with serving(step) as server:
        fetch(server.address + "/", target)
    assert target.read_bytes() == BODY


def test_a_connection_kept_open_does_not_hold_the_client(target: Path) -> None:
    def step(client: socket.socket, request: str) -> None:
        ok(BODY)(client, request)
        server.done.wait(scale.LONG_S)

    started = time.monotonic()
    with serving(step) as server:
        fetch(server.address + "/", target)
    assert time.monotonic() - started < scale.LONG_S / 2
    assert target.read_bytes() == BODY


def test_a_local_file_is_copied(target: Path, tmp_path: Path) -> None:
    source = tmp_path / "a file"
    source.write_bytes(BODY)
    fetch(f"file://{tmp_path}/a%20file", target)
    assert target.read_bytes() == BODY
    assert left(target) == ["file"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "there is no such file"),
        (os.mkfifo, "not a regular file"),
        (os.mkdir, "not a regular file"),
        (lambda path: path.write_bytes(bytes(2 << 20)), "the most is 1048576"),
    ],
    ids=["missing", "fifo", "directory", "large"],
)
def test_what_is_no_local_file_is_refused(target: Path, tmp_path: Path, make, reason) -> None:
    make(tmp_path / "source")
    with pytest.raises(ImageError, match=reason):
        fetch(f"file://{tmp_path}/source", target)
    assert left(target) == []


BAD_ANSWERS = {
    "not found": (answer("HTTP/1.1 404 Not Found\nContent-Length: 0"), "answers 404 Not Found"),
    "error": (answer("HTTP/1.1 500 Oh\nContent-Length: 0"), "answers 500 Oh"),
    "no content": (answer("HTTP/1.1 204 No Content"), "answers 204"),
    "truncated": (ok(BODY, claim=len(BODY) + 1), "truncated: 100000 of 100001 bytes came"),
    "truncated chunk": (
        answer(CHUNKED, b"186a0\r\n" + BODY[:5000]),
        "truncated",
    ),
    "no last chunk": (
        answer(CHUNKED, b"186a0\r\n" + BODY + b"\r\n"),
        "truncated",
    ),
    "length over the cap": (ok(b"", claim=1 << 40), "1099511627776 bytes long, the most is"),
    "body over the cap": (answer("HTTP/1.0 200 OK", bytes(2 << 20)), "larger than 1048576 bytes"),
    "length is a word": (answer("HTTP/1.1 200 OK\nContent-Length: many", BODY), "none: 'many'"),
    "length is negative": (answer("HTTP/1.1 200 OK\nContent-Length: -1", BODY), "none: '-1'"),
    "two lengths": (ok(BODY, "Content-Length: 7"), "several lengths: 100000, 7"),
    "no HTTP": (answer("SSH-2.0-OpenSSH_9.2"), "not an HTTP answer"),
    "nothing": (lambda client, request: None, "not an HTTP answer"),
    "to a file": (answer("HTTP/1.1 302 F\nLocation: file:///etc/passwd"), "redirects to file:"),
    "to ftp": (answer("HTTP/1.1 301 F\nLocation: ftp://h/x"), "redirects to ftp:"),
    "to data": (answer("HTTP/1.1 307 F\nLocation: data:,x"), "redirects to data:"),
    "to nowhere": (answer("HTTP/1.1 302 F\nContent-Length: 0"), "answers 302"),
    "with a password": (
        answer("HTTP/1.1 302 F\nLocation: http://u:p@127.0.0.1/"),
        "without a host, or with a user",
    ),
    "unasked range": (
        answer("HTTP/1.1 206 P\nContent-Range: bytes 0-99/1000\nContent-Length: 100", BODY[:100]),
        "truncated: 100 of 1000",
    ),
    "malformed range": (
        answer("HTTP/1.1 206 P\nContent-Range: bytes */*\nContent-Length: 100", BODY[:100]),
        "a range that is none",
    ),
}


@pytest.mark.parametrize(("step", "reason"), BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_a_server_that_lies_or_fails_leaves_nothing(target: Path, step: Step, reason: str) -> None:
    with serving(step) as server, pytest.raises(ImageError, match=reason) as caught:
        fetch(f"{server.address}/x?signature=secret", target)
    assert str(caught.value).startswith(f"cannot fetch {server.address}/x: ")
    assert "secret" not in str(caught.value)
    assert left(target) == []


def test_redirects_are_followed_and_bounded(target: Path) -> None:
    onward = answer("HTTP/1.1 302 F\nLocation: /other place\nContent-Length: 0")
    with serving(onward, ok(BODY)) as server:
        fetch(server.address + "/a", target)
    assert target.read_bytes() == BODY
    assert server.requests[1].startswith("GET /other%20place HTTP/1.1")
    with serving(*[onward] * 9) as server, pytest.raises(ImageError, match="more than 8 times"):
        fetch(server.address + "/a", target)


def test_a_redirect_with_an_endless_body_is_not_read(target: Path) -> None:
    def endless(client: socket.socket, request: str) -> None:
        client.sendall(b"HTTP/1.1 302 F\r\nLocation: /b\r\n\r\n")
        while not server.done.is_set():
            client.sendall(bytes(1 << 20))

    started = time.monotonic()
    with serving(endless, ok(BODY)) as server:
        fetch(server.address + "/a", target)
    assert time.monotonic() - started < scale.LONG_S / 2


def test_a_transfer_that_breaks_goes_on_where_it_stands(target: Path) -> None:
    with serving(ranged(BODY, stop=60_000), ranged(BODY, stop=60_001), ranged(BODY)) as server:
        fetch(server.address + "/a", target)
    assert target.read_bytes() == BODY
    assert left(target) == ["file"]
    assert "Range: bytes=60000-" in server.requests[1]
    assert 'If-Range: "v1"' in server.requests[1]
    assert "Range: bytes=60001-" in server.requests[2]


def test_a_reset_connection_goes_on_too(target: Path) -> None:
    def reset(client: socket.socket, request: str) -> None:
        ranged(BODY, stop=60_000)(client, request)
        # Only what the client has taken survives a reset.
        while struct.unpack("I", _outq(client))[0]:
            time.sleep(0.01)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with serving(reset, ranged(BODY)) as server:
        fetch(server.address + "/a", target)
    assert target.read_bytes() == BODY


def _outq(client: socket.socket) -> bytes:
    import fcntl
    import termios

    return fcntl.ioctl(client.fileno(), termios.TIOCOUTQ, bytes(4))


def test_the_next_call_goes_on_and_a_new_version_starts_again(target: Path) -> None:
    other = BODY[::-1]
    breaks = [ranged(BODY, stop=60_000)] * 4
    with serving(*breaks, ranged(BODY), ranged(other, etag='"v2"')) as server:
        uri = server.address + "/a"
        with pytest.raises(ImageError, match=r"60000 of 100000.*the next try goes on from there"):
            fetch(uri, target)
        assert left(target) == ["file.part", "file.part.json"]
        saved = {name: target.with_name(name).read_bytes() for name in left(target)}
        for body in (BODY, other):
            fetch(uri, target)
            assert "Range: bytes=60000-" in server.requests[-1]
            assert target.read_bytes() == body
            assert left(target) == ["file"]
            for name, data in saved.items():
                target.with_name(name).write_bytes(data)


@pytest.mark.parametrize("field", ["uri_sha256", "boot_id"])
def test_a_part_of_another_address_or_boot_is_not_used(target: Path, field: str) -> None:
    with serving(*[ranged(BODY, stop=60_000)] * 4, ranged(BODY)) as server:
        uri = server.address + "/a"
        with pytest.raises(ImageError):
            fetch(uri, target)
        path = target.with_name("file.part.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), field: "another"}))
        fetch(uri, target)
    assert "Range: " not in server.requests[-1]
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("note", ["", "{}", "[]", '{"uri_sha256": 1}', "\x00", '{"a": 1}'])
def test_a_part_with_a_spoilt_note_is_not_trusted(target: Path, note: str) -> None:
    target.with_name("file.part").write_bytes(b"wrong")
    target.with_name("file.part.json").write_text(note)
    with serving(ranged(BODY)) as server:
        fetch(server.address + "/a", target)
    assert target.read_bytes() == BODY
    assert "Range: " not in server.requests[0]


def test_a_server_without_versions_keeps_no_part(target: Path) -> None:
    weak = ok(BODY[:5000], 'ETag: W/"x"', "Accept-Ranges: bytes", claim=len(BODY))
    with serving(weak) as server, pytest.raises(ImageError, match="5000 of 100000"):
        fetch(server.address + "/a", target)
    assert left(target) == []


def test_a_busy_server_is_asked_again(target: Path) -> None:
    busy = answer("HTTP/1.1 503 Busy\nContent-Length: 0")
    with serving(busy, ok(BODY)) as server:
        fetch(server.address + "/a", target)
    assert target.read_bytes() == BODY
    with serving(*[busy] * 4) as server, pytest.raises(ImageError, match="answers 503 Busy"):
        fetch(server.address + "/a", target)
    assert len(server.requests) == 4


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"])
def test_a_server_that_hangs_is_left(target: Path, sent: bytes) -> None:
    def hang(client: socket.socket, request: str) -> None:
        client.sendall(sent)
        server.done.wait(scale.LONG_S)

    started = time.monotonic()
    with serving(hang) as server, pytest.raises(ImageError, match=r"nothing came for 0\.3 s"):
        fetch(server.address + "/a", target, replace(LIMITS, stall_timeout_s=0.3))
    assert 0.3 <= time.monotonic() - started < scale.LONG_S / 2
    assert left(target) == []


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "]
)
def test_a_server_that_drips_is_left(target: Path, head: bytes) -> None:
    def drip(client: socket.socket, request: str) -> None:
        client.sendall(head)
        while not server.done.wait(0.05):
            client.sendall(b"x")

    started = time.monotonic()
    with serving(drip) as server, pytest.raises(ImageError, match=r"only \d+ bytes came in 1 s"):
        fetch(server.address + "/a", target, replace(LIMITS, stall_timeout_s=1))
    assert time.monotonic() - started < scale.LONG_S / 2
    assert left(target) == []


def test_the_whole_transfer_has_a_deadline(target: Path) -> None:
    def slow(client: socket.socket, request: str) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not server.done.wait(0.02):
            client.sendall(bytes(500))

    with serving(slow) as server, pytest.raises(ImageError, match="total time-out"):
        fetch(server.address + "/a", target, replace(LIMITS, total_timeout_s=0.7))
    assert left(target) == []


def test_nobody_there(target: Path) -> None:
    with serving() as server:
        address = server.address
    with pytest.raises(ImageError, match="Connection refused"):
        fetch(address + "/a", target)
    assert left(target) == []


def test_a_server_that_never_accepts_is_left(target: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    port = listener.getsockname()[1]
    # A full backlog drops further SYNs, as a dead host would.
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.1", port))
        fillers.append(filler)
    try:
        with pytest.raises(ImageError, match=r"no connection within 0\.4 s"):
            fetch(f"http://127.0.0.1:{port}/", target, replace(LIMITS, connect_timeout_s=0.4))
    finally:
        for opened in (*fillers, listener):
            opened.close()
    assert left(target) == []


def test_too_little_space_is_refused_at_once(target: Path) -> None:
    with serving(ok(BODY)) as server, pytest.raises(ImageError, match=r"No space left.*free some"):
        download(server.address + "/a", target, limits=LIMITS, reserve_bytes=1 << 60)
    assert left(target) == []


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("ftp://host/x", "use file:///path"),
        ("/srv/x.tar", "use file:///path"),
        ("", "use file:///path"),
        ("http://", "use file:///path"),
        ("http:///x", "names no host"),
        ("http://host:99999/", "(?i)port"),
        ("http://host/a b", "blanks"),
        ("http://host/a\r\nX: y", "blanks"),
        ("http://host/é", "not ASCII"),
        ("http://user:secret@host/", "user name or password"),
        ("file://host/x", "another host"),
        ("file:///x#y", "%23"),
    ],
)
def test_a_uri_is_judged_before_it_is_opened(uri: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        check_uri(uri)
    assert "secret" not in str(caught.value)


def test_good_uris() -> None:
    assert check_uri("HTTP://host:8080/a?b#c") == "http"
    assert check_uri("https://[::1]/a") == "https"
    assert check_uri("file:///srv/é.tar") == "file"
    assert check_uri("file://localhost/srv/a") == "file"
