from __future__ import annotations

import gzip
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from archives import LIMITS, PACKINGS, TREE, Place, entry, tar, zipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nativert.runtime.image_errors import ImageError


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.check()


def header(name: bytes, size: bytes, flag: bytes, body: bytes = b"") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[124:136] = size.ljust(12, b"\0")
    block[136:148] = b"00000000000\0"
    block[156:157] = flag
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + body + bytes(-len(body) % 512)


END = bytes(1024)
DAMAGED = {
    "pax bomb": (header(b"x", b"77777777777", b"x"), "extended header is 8589934591 bytes"),
    "long name bomb": (header(b"L", b"77777777777", b"L"), "extended header is"),
    "negative size": (header(b"f", b"\xff" * 12, b"0") + END, "size is not a number"),
    "huge size": (header(b"f", b"\x80" + b"\x7f" * 11, b"0") + END, "unpacks to more than"),
    "letters for a size": (header(b"f", b"bogus", b"0") + END, "a number that is none"),
    "pax with a bad length": (
        header(b"x", b"00000000013", b"x", b"999 path=a\n") + header(b"f", b"0", b"0") + END,
        "pax record is malformed",
    ),
    "pax path with NUL": (
        header(b"x", b"00000000014", b"x", b"12 path=a\0b\n") + header(b"f", b"0", b"0") + END,
        "NUL",
    ),
    "pax size that lies": (
        header(b"x", b"00000000020", b"x", b"16 size=-000001\n") + header(b"f", b"0", b"0") + END,
        "size is not a number",
    ),
    "global path": (
        header(b"g", b"00000000012", b"g", b"10 path=a\n") + header(b"f", b"0", b"0") + END,
        "for all its members at once",
    ),
    "link with a body": (header(b"l", b"00000001000", b"1", b"x" * 512) + END, "claims to hold"),
    "no end": (header(b"f", b"0", b"0"), "truncated"),
    "wrong check sum": (header(b"f", b"0", b"0") + b"x" * 512, "wrong check sum"),
}


@pytest.mark.parametrize(("data", "rule"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_tar_is_refused(place: Place, data: bytes, rule: str) -> None:
    with pytest.raises(ImageError, match=rule):
        place.unpack(data)


def test_truncation_is_noticed_at_every_length(place: Place) -> None:
    data = tar(entry("a", b"x" * 700), entry("b", b"y"))
    end = data.rindex(b"y") + 511
    for pack in PACKINGS:
        packed = pack(data)
        whole = end if pack is bytes else len(packed)
        for length in range(1, whole, 37):
            with pytest.raises(ImageError):
                place.unpack(packed[:length])


def test_a_gzip_with_a_wrong_crc_is_refused(place: Place) -> None:
    data = bytearray(gzip.compress(tar(*TREE)))
    data[-8] ^= 1
    with pytest.raises(ImageError, match="gzip data is damaged"):
        place.unpack(bytes(data))


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_bomb_stops_at_the_ratio_while_streaming(
    place: Place, pack: Callable[[bytes], bytes]
) -> None:
    limits = replace(LIMITS, max_bytes=1 << 30)
    with pytest.raises(ImageError, match="200 times its size"):
        place.unpack(pack(tar(entry("zeros", bytes(16 << 20)))), limits=limits)
    assert (place.target / "zeros").stat().st_size < 8 << 20


def test_a_zip_bomb_is_refused_before_it_is_written(place: Place) -> None:
    with pytest.raises(ImageError, match="200 times its size"):
        place.unpack(zipped(("zeros", bytes(3 << 20), 0o100644)))
    assert not (place.target / "zeros").exists()


def test_a_zip_whose_sizes_lie_stops_at_the_claim(place: Place) -> None:
    data = bytearray(zipped(("zeros", bytes(2 << 20), 0o100644)))
    at = data.rindex(b"PK\1\2")
    struct.pack_into("<L", data, at + 24, 1000)
    with pytest.raises(ImageError, match="1000 bytes that it claims"):
        place.unpack(bytes(data))
    assert (place.target / "zeros").stat().st_size <= 1000


def test_an_overlapping_zip_bomb_is_counted_against_the_archive(place: Place) -> None:
    # Every entry leads to the same data, as in the non-recursive bombs of 2019.
    one = zipped(("f0", bytes(60_000), 0o100644))
    at = one.index(b"PK\1\2")
    central = one[at : one.index(b"PK\5\6")]
    many = b"".join(
        central.replace(b"f0", b"%c%c" % (65 + i // 26, 65 + i % 26)) for i in range(90)
    )
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 90, 90, len(many), at, 0)
    with pytest.raises(ImageError, match="200 times its size"):
        place.unpack(one[:at] + many + end)


@pytest.mark.parametrize(
    ("name", "mode", "rule"),
    [
        ("../victim", 0o100644, 'contains ".."'),
        ("/victim", 0o100644, "absolute"),
        ("su", 0o104755, "set-uid"),
        ("pipe", 0o010644, "fifo"),
        ("dev", 0o020644, "device node"),
        ("sock", 0o140644, "socket"),
        ("up", 0o120777, "leaves the image"),
    ],
)
def test_a_hostile_zip_is_refused(place: Place, name: str, mode: int, rule: str) -> None:
    with pytest.raises(ImageError, match=rule):
        place.unpack(zipped((name, b"../victim", mode)))


def test_a_zip_with_wrong_data_is_refused(place: Place) -> None:
    good = zipped(("a", b"content", 0o100644), method=zipfile.ZIP_STORED)
    with pytest.raises(ImageError, match="wrong CRC"):
        place.unpack(good.replace(b"content", b"c0ntent"))
    with pytest.raises(ImageError, match="compression method 12"):
        place.unpack(zipped(("a", b"x", 0o100644), method=zipfile.ZIP_BZIP2))
    encrypted = bytearray(good)
    encrypted[good.index(b"PK\1\2") + 8] |= 1
    with pytest.raises(ImageError, match="encrypted"):
        place.unpack(bytes(encrypted))


def test_the_limits_stop_the_stream(place: Place) -> None:
    with pytest.raises(ImageError, match="more than 4194304 bytes"):
        place.unpack(tar(entry("a", os.urandom(3 << 20)), entry("b", os.urandom(3 << 20))))
    with pytest.raises(ImageError, match="more than 100 files"):
        place.unpack(tar(*(entry(f"f{i}") for i in range(101))))
    with pytest.raises(ImageError, match="more than 100 files"):
        place.unpack(tar(*(entry("same") for _ in range(101))))
    headers = header(b"L", b"00000000002", b"L", b"a\0") * 402
    with pytest.raises(ImageError, match="more than 401 headers"):
        place.unpack(headers + END)


def test_an_xz_that_asks_for_too_much_memory_is_refused(place: Place) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 256 << 20}]
    compressor = lzma.LZMACompressor(lzma.FORMAT_XZ, filters=[{"id": lzma.FILTER_LZMA2}])
    packed = bytearray(compressor.compress(tar(*TREE)) + compressor.flush())
    # The block header's dictionary byte (xz format 5.3.1), so that the test itself stays small.
    assert packed[12:16] == bytes([packed[12], 0, 0x21, 1])
    packed[16] = 32
    size = (packed[12] + 1) * 4
    struct.pack_into("<L", packed, 12 + size - 4, zlib.crc32(packed[12 : 12 + size - 4]))
    assert filters[0]["dict_size"] == 2 << (32 // 2 + 11)
    with pytest.raises(ImageError, match="needs more than 128 MiB"):
        place.unpack(bytes(packed))


def test_space_is_left_on_the_disk(place: Place) -> None:
    with pytest.raises(ImageError, match=r"cannot unpack the image: No space left.*free some"):
        place.unpack(tar(*TREE), limits=replace(LIMITS, reserve_bytes=1 << 62))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), kind=st.sampled_from(["tar", "zip", "gz"]))
def test_damage_anywhere_raises_only_image_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str
) -> None:
    place = Place(tmp_path_factory.mktemp("fuzz"))
    good = {
        "tar": tar(*TREE),
        "gz": gzip.compress(tar(*TREE)),
        "zip": zipped(("bin/", b"", 0o40755), ("bin/a", b"x" * 99, 0o100755)),
    }[kind]
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        place.unpack(bytes(raw))
    except ImageError:
        pass
    place.check()
