from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from archives import LIMITS, PACKINGS, TREE, Place, entry, link, tar, zipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nativert.runtime.image_errors import ImageError
from nativert.runtime.unpack import Format, Totals, detect, place_binary


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.check()


@pytest.mark.parametrize("pack", PACKINGS, ids=["plain", "gz", "xz"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_is_unpacked_as_it_is(
    place: Place, pack: Callable[[bytes], bytes], form: int
) -> None:
    totals = place.unpack(pack(tar(*TREE, form=form)))
    at = place.target
    assert (at / "bin/app").read_text() == "#!/bin/sh\n"
    assert stat.S_IMODE((at / "bin/app").stat().st_mode) == 0o755
    assert (at / "bin/app").stat().st_mtime == 1_000_000_000
    assert stat.S_IMODE((at / "bin").stat().st_mode) == 0o755
    assert stat.S_IMODE((at / "share").stat().st_mode) == 0o755
    assert (at / "share/doc/read.me").read_bytes() == b"text" * 200
    assert stat.S_IMODE((at / "share/doc/read.me").stat().st_mode) == 0o644
    assert os.readlink(at / "share/up") == "../bin/app"
    assert (at / "bin/same").stat().st_ino == (at / "bin/app").stat().st_ino
    assert (at / "empty").stat().st_size == 0
    assert totals.bytes == 10 + 800


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_zip_is_unpacked_as_it_is(place: Place, method: int) -> None:
    body = os.urandom(700_000) + bytes(100_000)
    place.unpack(
        zipped(
            ("bin/", b"", 0o40755),
            ("bin/app", body, 0o100755),
            ("naïve", b"x", 0),
            ("bin/also", b"app", 0o120777),
            method=method,
        )
    )
    assert (place.target / "bin/app").read_bytes() == body
    assert os.access(place.target / "bin/app", os.X_OK)
    assert (place.target / "naïve").read_bytes() == b"x"
    assert not (place.target / "naïve").stat().st_mode & 0o111
    assert os.readlink(place.target / "bin/also") == "app"


def test_a_zip64_is_unpacked(place: Place) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, archive.open("a", "w", force_zip64=True) as member:
        member.write(b"content")
    place.unpack(out.getvalue())
    assert (place.target / "a").read_bytes() == b"content"


def test_long_names_and_strange_ones_survive(place: Place) -> None:
    name = "/".join(["n" * 200] * 3)
    odd = os.fsdecode(b"caf\xe9\n")
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        place.unpack(tar(entry(name, b"1"), entry(odd, b"2"), form=form))
        assert (place.target / name).read_bytes() == b"1"
        assert (place.target / odd).read_bytes() == b"2"


def test_concatenated_and_padded_gzip_is_one_stream(place: Place) -> None:
    data = tar(*TREE)
    place.unpack(gzip.compress(data[:700]) + gzip.compress(data[700:]) + bytes(1000))
    assert (place.target / "bin/app").exists()


def test_the_later_of_two_equal_names_wins_and_does_not_write_through(place: Place) -> None:
    place.unpack(
        tar(
            entry("a", b"old"),
            link("b", "a", tarfile.LNKTYPE),
            entry("a", b"new"),
            entry("A", b"twin"),
        )
    )
    assert (place.target / "a").read_bytes() == b"new"
    assert (place.target / "b").read_bytes() == b"old"
    assert (place.target / "A").read_bytes() == b"twin"


def test_absolute_symlinks_are_data_in_a_whole_root(place: Place) -> None:
    place.unpack(tar(link("etc/mtab", "/proc/mounts"), entry("tmp", type=b"5")), rootfs=True)
    assert os.readlink(place.target / "etc/mtab") == "/proc/mounts"


LONG = "d" * 250
REFUSED = {
    "dot-dot": ([entry("../victim", b"!")], 'contains ".."'),
    "dot-dot inside": ([entry("a/../../victim", b"!")], 'contains ".."'),
    "absolute": ([entry("/etc/victim", b"!")], "absolute"),
    "absolute directory": ([entry("/", type=tarfile.DIRTYPE)], "absolute"),
    "symlink then write": (
        [link("a", "b"), entry("b", type=tarfile.DIRTYPE), entry("a/x", b"!")],
        "goes through the symbolic link 'a'",
    ),
    "file then write": ([entry("a", b""), entry("a/x", b"!")], "goes through the file 'a'"),
    "symlink out": ([link("a", "../victim")], "leaves the image"),
    "symlink out, later": ([link("a/b", "../c/../../victim")], "leaves the image"),
    "symlink absolute": ([link("a", "/etc/shadow")], "absolute path '/etc/shadow'"),
    "symlink empty": ([link("a", "")], "empty"),
    "hardlink out": ([link("a", "../victim", tarfile.LNKTYPE)], 'contains ".."'),
    "hardlink absolute": ([link("a", "/etc/passwd", tarfile.LNKTYPE)], "absolute"),
    "hardlink to nothing": ([link("a", "b", tarfile.LNKTYPE)], "is not a file of this image"),
    "hardlink to a symlink": (
        [link("b", "c"), link("a", "b", tarfile.LNKTYPE)],
        "is not a file of this image",
    ),
    "hardlink to itself": (
        [entry("a", b""), link("a", "./a", tarfile.LNKTYPE)],
        "is not a file of this image",
    ),
    "character device": ([entry("null", type=tarfile.CHRTYPE)], "device node"),
    "block device": ([entry("sda", type=tarfile.BLKTYPE)], "device node"),
    "fifo": ([entry("pipe", type=tarfile.FIFOTYPE)], "fifo"),
    "set-uid": ([entry("su", b"", mode=0o4755)], "set-uid or set-gid"),
    "set-gid": ([entry("su", b"", mode=0o2755)], "set-uid or set-gid"),
    "capability": (
        [entry("ping", b"", pax_headers={"SCHILY.xattr.security.capability": "\x01"})],
        "file capabilities",
    ),
    "directory becomes link": (
        [entry("rootfs", type=tarfile.DIRTYPE), link("rootfs", ".")],
        "comes twice, as directory and as symbolic link",
    ),
    "link becomes file": ([link("a", "b"), entry("a", b"!")], "comes twice"),
    "link becomes directory": ([link("a", "b"), entry("a", type=tarfile.DIRTYPE)], "comes twice"),
    "300-byte name": ([entry("n" * 300, b"")], "a name is 300 bytes long"),
    "long path": ([entry("/".join([LONG] * 17), b"")], "the path is 4266 bytes long"),
    "deep path": ([entry("/".join("d" * 65), b"")], "65 deep"),
    "file as root": ([entry(".", b"!")], "cannot be the image's root"),
    "link as root": ([link(".", "b")], "cannot be the image's root"),
    "sparse": ([entry("s", b"", pax_headers={"GNU.sparse.major": "1"})], "sparse"),
    "old sparse": ([entry("s", b"", type=tarfile.GNUTYPE_SPARSE)], "sparse"),
    "unknown type": ([entry("v", b"", type=b"V")], "not known"),
    "nothing": ([], "holds no files"),
    "only a root": ([entry("./", type=tarfile.DIRTYPE)], "holds no files"),
}


@pytest.mark.parametrize(
    ("members", "rule", "rootfs"),
    [
        pytest.param(members, rule, rootfs, id=f"{word}{', rootfs' if rootfs else ''}")
        for word, (members, rule) in REFUSED.items()
        for rootfs in (False, True)
        if not (rootfs and word == "symlink absolute")  # data in a whole root
    ],
)
def test_a_hostile_tar_is_refused(
    place: Place, members: list[tuple[tarfile.TarInfo, bytes]], rule: str, rootfs: bool
) -> None:
    with pytest.raises(ImageError, match=rule):
        place.unpack(tar(*members), rootfs=rootfs)


@pytest.mark.parametrize("name", ["proc", "dev", "sys", "tmp", "run", "data"])
def test_a_whole_root_brings_no_link_where_the_runtime_mounts(place: Place, name: str) -> None:
    with pytest.raises(ImageError, match="mounts over it"):
        place.unpack(tar(link(name, "etc")), rootfs=True)


def test_an_error_names_the_member_escaped(place: Place) -> None:
    with pytest.raises(ImageError) as caught:
        place.unpack(tar(entry("../\x1b[31m\u202egnp", b"")))
    assert "\x1b" not in str(caught.value)
    assert "\u202e" not in str(caught.value)
    assert r"'../\x1b[31m\u202egnp'" in str(caught.value)


def test_a_path_max_chain_of_links_stays_inside(place: Place) -> None:
    # CVE-2025-4517: links that resolve in the end to a path longer than PATH_MAX.
    comp = "d" * 247
    members, path = [], ""
    for step in "abcdefghijklmnop":
        members += [entry(path + comp, type=tarfile.DIRTYPE), link(path + step, comp)]
        path += comp + "/"
    chain = "/".join("abcdefghijklmnop")
    members += [
        link(f"{chain}/{'l' * 254}", "../" * 16),
        link("escape", f"{chain}/{'l' * 254}/../../../victim"),
        link("flag", "escape", tarfile.LNKTYPE),
        entry("flag", b"!"),
    ]
    with pytest.raises(ImageError, match=r"goes through the symbolic link|leaves the image"):
        place.unpack(tar(*members))


def test_a_link_planted_meanwhile_is_not_followed(place: Place) -> None:
    # What the policy does not know of, the kernel still refuses: openat2 follows no link.
    (place.target / "a").symlink_to("../..")
    for name in ("a/victim", "a/deep/victim"):
        with pytest.raises(OSError, match=r"(?i)symbolic|not a directory"):
            place.unpack(tar(entry(name, b"!")))
    (place.target / "f").symlink_to("../victim")
    place.unpack(tar(entry("f", b"!")))
    assert not (place.target / "f").is_symlink()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tar(*TREE), Format.TAR),
        (tar(entry("BZh", b"x"), form=tarfile.GNU_FORMAT), Format.TAR),
        (gzip.compress(b"x"), Format.TAR_GZ),
        (lzma.compress(b"x"), Format.TAR_XZ),
        (zipped(("a", b"", 0)), Format.ZIP),
        (b"\x7fELF\2\1\1", Format.BINARY),
        (b"#!/bin/sh\n", Format.BINARY),
        (b"", "is empty"),
        (b"<!DOCTYPE html>", "no archive and no program"),
        (b"BZh91AY", "bzip2"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
    ],
)
def test_content_tells_what_an_image_is(
    tmp_path: Path, data: bytes, expected: Format | str
) -> None:
    (tmp_path / "image").write_bytes(data)
    fd = os.open(tmp_path / "image", os.O_RDONLY)
    try:
        if isinstance(expected, Format):
            assert detect(fd) is expected
        else:
            with pytest.raises(ImageError, match=expected):
                detect(fd)
    finally:
        os.close(fd)


def test_compressed_data_that_is_no_tar_is_refused(place: Place) -> None:
    for pack in (gzip.compress, lzma.compress):
        with pytest.raises(ImageError, match="wrong check sum"):
            place.unpack(pack(b"x" * 2000))


def test_a_program_becomes_bin_name(place: Place) -> None:
    program = place.canary.parent / "program"
    program.write_bytes(b"\x7fELF" + bytes(5000))
    source = os.open(program, os.O_RDONLY)
    target = os.open(place.target, os.O_RDONLY)
    try:
        assert place_binary(source, target, "app", limits=LIMITS) == Totals(5004, 1)
        for name in ("..", "", ".", "a/b", "a\0b"):
            with pytest.raises(ImageError):
                place_binary(source, target, name, limits=LIMITS)
    finally:
        os.close(source)
        os.close(target)
    assert stat.S_IMODE((place.target / "bin/app").stat().st_mode) == 0o755
    assert (place.target / "bin/app").stat().st_size == 5004


MEMBERS = st.lists(
    st.tuples(
        st.text("ab./", min_size=1, max_size=8),
        st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]),
        st.text("ab./", max_size=8),
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(members=MEMBERS, rootfs=st.booleans())
def test_no_tar_escapes(
    tmp_path_factory: pytest.TempPathFactory,
    members: list[tuple[str, bytes, str]],
    rootfs: bool,
) -> None:
    place = Place(tmp_path_factory.mktemp("fuzz"))
    entries = [
        entry(name, b"!" if kind == tarfile.REGTYPE else b"", type=kind, linkname=target)
        for name, kind, target in members
    ]
    try:
        place.unpack(tar(*entries), rootfs=rootfs)
    except ImageError:
        pass
    place.check()
