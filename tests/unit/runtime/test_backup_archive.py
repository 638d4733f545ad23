"""The file of a backup: every damage is seen, nothing foreign is taken."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from nativert.errors import DescriptorError, NativertError
from nativert.runtime import backup_archive as archive
from nativert.runtime.backup import add_tree
from nativert.runtime.backup_archive import Head, Writer
from nativert.runtime.backup_tree import Tree

UUID = "0a1b2c3d-0000-4000-8000-000000000001"
HEAD = Head(
    format=1, nativert="0.1.0", schema=3, node="n", name="edge", created=1.0, instances=1, data=True
)


def written(path: Path, add: Callable[[Writer], None] | None = None, head: Head = HEAD) -> Path:
    with path.open("wb") as file:
        writer = Writer(file)
        writer.add(archive.HEAD, msgspec.json.encode(head))
        writer.add(archive.NODE, b"{}")
        writer.add(archive.STORE, b"store" * 300)
        if add is not None:
            add(writer)
        writer.finish()
    return path


def test_what_was_written_is_accepted(tmp_path: Path) -> None:
    file = written(tmp_path / "b")
    assert archive.verify(file) == HEAD
    with archive.opened(file) as tar:
        assert tar.getnames() == ["backup.json", "node.json", "nativert.db", "sha256"]
        assert archive.content(tar, tar.getmember("node.json")) == b"{}"


def test_every_bit_counts(tmp_path: Path) -> None:
    good = written(tmp_path / "b").read_bytes()
    bad = tmp_path / "bad"
    for position in range(0, len(good), 7):
        flipped = bytearray(good)
        flipped[position] ^= 1 << position % 8
        bad.write_bytes(flipped)
        with pytest.raises(NativertError):
            archive.verify(bad)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    good = written(tmp_path / "b").read_bytes()
    bad = tmp_path / "bad"
    for length in (0, 1, 511, 512, 513, *range(1024, len(good), 50), len(good) - 1):
        bad.write_bytes(good[:length])
        with pytest.raises(NativertError):
            archive.verify(bad)


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    file = written(tmp_path / "b", head=msgspec.structs.replace(HEAD, format=2))
    with pytest.raises(NativertError, match="has format 2, this nativert knows 1"):
        archive.verify(file)


@pytest.mark.parametrize(
    "name",
    ["x", "../x", "/etc/x", "i/../x", f"i/{UUID}/etc/x", f"i/{UUID}", "i/x/data/y", "etc", "etc//x",
     "etc/./x", "node.json/x", f"i/{UUID}/data/../../x"],
)  # fmt: skip
def test_a_name_that_does_not_belong_is_refused(tmp_path: Path, name: str) -> None:
    file = written(tmp_path / "b", lambda writer: writer.add(name, b""))
    with pytest.raises((NativertError, DescriptorError)):
        archive.verify(file)


def test_a_device_is_refused(tmp_path: Path) -> None:
    def add(writer: Writer) -> None:
        member = tarfile.TarInfo(f"i/{UUID}/data/null")
        member.type, member.devmajor, member.devminor = tarfile.CHRTYPE, 1, 3
        writer._begin(member)

    with pytest.raises(NativertError, match="does not belong"):
        archive.verify(written(tmp_path / "b", add))


def test_a_file_that_shrinks_is_filled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 5000)
    with source.open("r+b") as file:
        before = os.fstat(file.fileno())
        file.truncate(1000)

        def add(writer: Writer) -> None:
            with monkeypatch.context() as patched:
                patched.setattr(os, "fstat", lambda _: before)
                writer.add_file(f"i/{UUID}/log/current", file.fileno())

        made = written(tmp_path / "b", add)
    archive.verify(made)
    with archive.opened(made) as tar:
        content = tar.extractfile(f"i/{UUID}/log/current")
        assert content is not None
        assert content.read() == b"x" * 1000 + bytes(4000)


def test_the_tree_follows_no_link(tmp_path: Path) -> None:
    outside, top = tmp_path / "outside", tmp_path / "top"
    outside.mkdir()
    top.mkdir()
    (top / "link").symlink_to(outside)
    tree = Tree(top, owner=lambda number: number)
    member = tarfile.TarInfo("link/file")
    with pytest.raises(NotADirectoryError):
        tree.put(member, io.BytesIO(b"x"))
    existing = tarfile.TarInfo("link")
    with pytest.raises(FileExistsError):
        tree.put(existing, io.BytesIO(b"x"))
    tree.close()
    assert list(outside.iterdir()) == []


def test_the_tree_keeps_modes_and_times(tmp_path: Path) -> None:
    tree = Tree(tmp_path, owner=lambda number: number)
    for name, kind, mode in (
        ("d", tarfile.DIRTYPE, 0o500),
        ("d/f", tarfile.REGTYPE, 0o640),
        ("d/p", tarfile.FIFOTYPE, 0o600),
    ):
        member = tarfile.TarInfo(name)
        member.type, member.mode, member.mtime = kind, mode, 1000
        member.uid, member.gid = os.getuid(), os.getgid()
        tree.put(member, io.BytesIO(b"x") if kind == tarfile.REGTYPE else None)
    tree.finish()
    tree.close()
    for name, mode in (("d", 0o500), ("d/f", 0o640), ("d/p", 0o600)):
        status = os.stat(tmp_path / name)
        assert status.st_mode & 0o7777 == mode
        assert status.st_mtime == 1000
    os.chmod(tmp_path / "d", 0o700)


def sparse(path: Path, size: int, *data: tuple[int, bytes]) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, piece in data:
            file.seek(offset)
            file.write(piece)


@pytest.mark.parametrize(
    "data",
    [
        (),
        ((0, b"begin"),),
        ((3 << 20, b"middle"), ((3 << 20) + 70_000, b"near")),
        ((0, b"begin"), (40 << 20, b"x" * 3_000_000), ((64 << 20) - 4, b"end!")),
    ],
)
def test_holes_are_neither_saved_nor_filled(
    tmp_path: Path, data: tuple[tuple[int, bytes], ...]
) -> None:
    source = tmp_path / "source"
    sparse(source, 64 << 20, *data)
    (tmp_path / "after").write_bytes(b"after")

    def add(writer: Writer) -> None:
        for name in ("source", "after"):
            with (tmp_path / name).open("rb") as file:
                writer.add_file(f"i/{UUID}/data/{name}", file.fileno())

    made = written(tmp_path / "b", add)
    assert made.stat().st_size < 6 << 20
    archive.verify(made)
    top = tmp_path / "top"
    top.mkdir()
    tree = Tree(top, owner=lambda _: os.getuid())
    with archive.opened(made) as tar:
        for member in tar:
            if member.name.startswith("i/"):
                tree.put(member, tar.extractfile(member))
    tree.finish()
    tree.close()
    back = top / "i" / UUID / "data" / "source"
    assert back.read_bytes() == source.read_bytes()
    assert back.stat().st_blocks * 512 < 6 << 20
    assert back.with_name("after").read_bytes() == b"after"


def test_a_map_of_holes_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    tree = Tree(top, owner=lambda _: os.getuid())
    for pairs in ([(-4, 4)], [(0, 1 << 40)], [(90, 20)]):
        member = tarfile.TarInfo(f"f{pairs[0][0]}{pairs[0][1]}")
        member.size = 100
        member.sparse = pairs  # type: ignore[assignment]
        with pytest.raises(OSError, match="map of holes"):
            tree.put(member, io.BytesIO(b"x" * 100))


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.REGTYPE])
def test_a_link_in_the_place_of_what_was_made_changes_nothing_else(
    tmp_path: Path, kind: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, top = tmp_path / "victim", tmp_path / "top"
    victim.write_text("kept")
    victim.chmod(0o600)
    top.mkdir()
    tree = Tree(top, owner=lambda _: os.getuid())
    member = tarfile.TarInfo("it")
    member.type, member.mode = kind, 0o4777

    def swap() -> None:
        # What an application does that owns the directory.
        (top / "it").rename(top / "away")
        (top / "it").symlink_to(victim)

    if kind == tarfile.DIRTYPE:
        tree.put(member, None)
        swap()
        with pytest.raises(OSError, match="Not a directory"):
            tree.finish()
    else:
        fstat = os.fstat

        def late(fd: int) -> os.stat_result:
            if not (top / "away").exists():
                swap()
            return fstat(fd)

        monkeypatch.setattr(os, "fstat", late)
        tree.put(member, io.BytesIO(b"") if kind == tarfile.REGTYPE else None)
        assert (top / "away").lstat().st_mode & 0o7777 == 0o4777
    assert victim.stat().st_mode & 0o7777 == 0o600
    assert victim.read_text() == "kept"


def test_a_link_made_before_a_fifo_is_opened_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, top = tmp_path / "victim", tmp_path / "top"
    victim.write_text("kept")
    victim.chmod(0o600)
    top.mkdir()
    mkfifo = os.mkfifo

    def made(name: str, mode: int, *, dir_fd: int) -> None:
        mkfifo(name, mode, dir_fd=dir_fd)
        (top / "it").unlink()
        (top / "it").symlink_to(victim)

    monkeypatch.setattr(os, "mkfifo", made)
    tree = Tree(top, owner=lambda _: os.getuid())
    member = tarfile.TarInfo("it")
    member.type, member.mode = tarfile.FIFOTYPE, 0o666
    with pytest.raises(OSError, match="taken its place"):
        tree.put(member, None)
    assert victim.stat().st_mode & 0o7777 == 0o600


def test_what_has_grown_since_is_none_of_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    sparse(source, 8 << 20, (0, b"begin"), (9 << 20, b"later"))
    with source.open("rb") as file:
        assert archive._data(file.fileno(), 8 << 20) == [(0, 4096), (8 << 20, 0)]


def test_a_file_that_cannot_be_filled_is_not_kept_open(tmp_path: Path) -> None:
    tree = Tree(tmp_path, owner=lambda _: os.getuid())
    before = len(os.listdir("/proc/self/fd"))

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(errno.ENOSPC, "no space left")

    with pytest.raises(OSError, match="no space"):
        tree.put(tarfile.TarInfo("file"), Broken())
    assert len(os.listdir("/proc/self/fd")) == before
    tree.close()


def test_only_what_has_changed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "top"
    top.mkdir()
    for name in ("a", "b"):
        (top / name).write_text(name)
    opened, number = os.open, errno.ELOOP

    def refuse(path: object, *arguments: int, **options: int) -> int:
        if path == "a":
            raise OSError(number, os.strerror(number), path)
        return opened(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    made = written(tmp_path / "one", lambda writer: add_tree(writer, top, f"i/{UUID}/data"))
    with archive.opened(made) as tar:
        assert f"i/{UUID}/data/b" in tar.getnames()
        assert f"i/{UUID}/data/a" not in tar.getnames()
    number = errno.EMFILE
    with pytest.raises(OSError, match="Too many open files"):
        written(tmp_path / "two", lambda writer: add_tree(writer, top, f"i/{UUID}/data"))
