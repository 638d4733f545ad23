"""ls, get and put: where what is got goes, and what is left when it breaks off."""

from __future__ import annotations

import io
import json
import os
import threading
import time

import pytest

LARGE = bytes(range(256)) * 4


@pytest.fixture(autouse=True)
def app(node, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    node.add("app", "RUNNING")
    node.files = {"notes": b"hello\n", "binary": LARGE}


def test_ls_is_sorted_and_marks_what_is_no_file(node, nativert):
    node.files["dir/"] = bytes(4096)
    assert nativert("ls", "app", "/data").out.splitlines() == [
        "MODE     SIZE  MODIFIED             NAME",
        "0644  1.0 KiB  1970-01-01 00:00:00  binary",
        "0644  4.0 KiB  1970-01-01 00:00:00  dir/",
        "0644      6 B  1970-01-01 00:00:00  notes",
    ]
    assert node.calls == [("ls", "/data")]
    first = json.loads(nativert("ls", "app", "-o", "json").out)[0]
    assert first == {
        "name": "binary",
        "kind": "file",
        "size_bytes": 1024,
        "mode": "0644",
        "modified_at": 0.0,
    }


def test_get_writes_to_stdout_into_a_file_or_a_directory(node, nativert, tmp_path):
    assert nativert("get", "app", "notes") == (0, "hello\n", "")
    assert nativert("get", "app", "notes", "-").out == "hello\n"
    target = tmp_path / "here"
    assert nativert("get", "app", "binary", str(target)).out == f"{target}: 1.0 KiB\n"
    assert target.read_bytes() == LARGE
    told = json.loads(nativert("get", "app", "notes", str(tmp_path), "-o", "json").out)
    assert told == {"path": "notes", "file": str(tmp_path / "notes"), "size_bytes": 6}
    assert (tmp_path / "notes").read_bytes() == b"hello\n"


def test_get_replaces_what_a_link_leads_to_and_writes_into_a_pipe(node, nativert, tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    nativert("get", "app", "notes", str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "hello\n"
    os.mkfifo(tmp_path / "pipe")
    came: list[str] = []
    reader = threading.Thread(target=lambda: came.append((tmp_path / "pipe").read_text()))
    reader.start()
    assert nativert("get", "app", "notes", str(tmp_path / "pipe")).code == 0
    reader.join()
    assert came == ["hello\n"]
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(("path", "code"), [("none", 3), ("binary", 5)])
def test_get_that_fails_leaves_what_was_there(node, nativert, tmp_path, path, code):
    node.broken_after = 100
    (tmp_path / "old").write_text("old")
    for name in ("old", "new"):
        assert nativert("get", "app", path, str(tmp_path / name)).code == code
    assert [each.name for each in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_put_has_the_mode_of_a_file_and_takes_stdin(node, nativert, tmp_path, monkeypatch):
    source = tmp_path / "tool"
    source.write_bytes(LARGE)
    source.chmod(0o750)
    assert nativert("put", "app", str(source), "bin/tool").out == "bin/tool: 1.0 KiB\n"
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe")
    os.close(writer)
    with open(reader, "rb") as pipe:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(pipe))
        told = json.loads(nativert("put", "app", "-", "piped", "-o", "json").out)
    assert (told["name"], told["size_bytes"], told["mode"]) == ("piped", 11, "0644")
    assert node.files["bin/tool"] == LARGE
    assert node.files["piped"] == b"from a pipe"
    assert node.calls == [("put", "bin/tool", "0o750"), ("put", "piped", "0o644")]


def test_put_needs_a_file_that_is_there(node, nativert, tmp_path):
    for source in (tmp_path / "none", tmp_path):
        assert nativert("put", "app", str(source), "x").code == 2
    assert nativert("put", "nobody", __file__, "x").code == 3
    assert node.calls == []
