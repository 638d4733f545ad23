"""What is asked of criu, what it says, and what is changed in its images."""

from __future__ import annotations

import stat
import struct
from pathlib import Path

import pytest

from nativert.errors import Code, NativertError
from nativert.isolation.criu import images, program
from nativert.isolation.criu.program import Criu

# Fields of TaskKobjIdsEntry: what is shared (1-4), then the namespaces pid, net, ipc, uts, mnt,
# user, cgroup, time.
OURS = [1, 1, 1, 1, 1, 2, 3, 4, 6, 7, 8, 5]
THEIRS = [2, 2, 2, 2, 1, 2, 3, 4, 6, 900, 10, 300]
JOINED = [2, 2, 2, 2, 1, 2, 3, 4, 6, 7, 8, 5]
INVENTORY_MAGIC = bytes.fromhex("16313158")
IDS_MAGIC = bytes.fromhex("1943565430204354")


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def ids(numbers: list[int]) -> bytes:
    return b"".join(varint(i << 3) + varint(n) for i, n in enumerate(numbers, start=1))


def image(magic: bytes, message: bytes) -> bytes:
    return magic + struct.pack("<I", len(message)) + message


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = ids(OURS)
    inventory = varint(1 << 3) + varint(1) + varint(3 << 3 | 2) + varint(len(root)) + root
    (tmp_path / "inventory.img").write_bytes(image(INVENTORY_MAGIC, inventory))
    (tmp_path / "ids-2.img").write_bytes(image(IDS_MAGIC, ids(THEIRS)))
    (tmp_path / "timens-11.img").write_bytes(b"clocks")
    return tmp_path


def test_only_the_namespaces_that_the_instance_has_are_joined(directory: Path) -> None:
    for _ in range(2):  # An interrupted restore is begun again.
        images.join_namespaces(directory)
        assert (directory / "ids-2.img").read_bytes() == image(IDS_MAGIC, ids(JOINED))
        assert (directory / "timens-0.img").read_bytes() == b"clocks"


def test_fields_that_are_not_known_stay_as_they_are(directory: Path) -> None:
    more = varint(20 << 3 | 2) + varint(200) + bytes(200)
    more += varint(21 << 3 | 5) + b"four" + varint(22 << 3 | 1) + b"eightmor"
    (directory / "ids-2.img").write_bytes(image(IDS_MAGIC, ids(THEIRS) + more))
    images.join_namespaces(directory)
    assert (directory / "ids-2.img").read_bytes() == image(IDS_MAGIC, ids(JOINED) + more)


@pytest.mark.parametrize("name", ["inventory.img", "ids-2.img"])
def test_images_cut_off_anywhere_are_refused(directory: Path, name: str) -> None:
    whole = (directory / name).read_bytes()
    for length in range(len(whole)):
        (directory / name).write_bytes(whole[:length])
        with pytest.raises(NativertError, match="not images of criu"):
            images.join_namespaces(directory)
        (directory / "timens-11.img").write_bytes(b"clocks")


def test_no_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NativertError, match="not images of criu"):
        images.join_namespaces(tmp_path)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where PATH leads: no criu is there until a test writes one."""
    monkeypatch.setattr(program, "_PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "criu"


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_machine_without_criu_is_told_what_to_install(fake: Path) -> None:
    assert not fake.exists()
    with pytest.raises(NativertError, match="criu is not installed") as caught:
        program.installed()
    assert caught.value.code is Code.MIGRATE
    assert "apt-get install criu" in caught.value.hint


def test_its_version_is_read(fake: Path) -> None:
    script(fake, "echo 'Version: 3.17.1'; echo 'GitID: v3'")
    assert program.installed() == Criu(str(fake), "3.17.1")


def test_a_program_without_a_version_is_not_criu(fake: Path) -> None:
    script(fake, "exit 0")
    with pytest.raises(NativertError, match="tells no version"):
        program.installed()


def test_what_its_check_complains_of_is_told(fake: Path) -> None:
    said = "Error (criu/tun.c:85): tun: Unable to create tun: No such file or directory"
    cause = "Error (criu/cr-check.c:613): Kernel doesn't support PTRACE_O_SUSPEND_SECCOMP"
    script(fake, f"cat <<'END'\n{said}\n{cause}\nEND\nexit 1")
    with pytest.raises(NativertError, match="criu check says: Kernel doesn't support PTRACE_O_S"):
        program.check(Criu(str(fake), "3.17.1"))


def test_a_check_that_is_content_says_nothing(fake: Path) -> None:
    script(fake, "echo 'Looks good.'")
    program.check(Criu(str(fake), "3.17.1"))


def test_the_first_error_of_a_log_is_the_reason(tmp_path: Path) -> None:
    (tmp_path / "restore.log").write_text(
        "(00.0) Version: 3.17.1\n"
        "7:(00.03) Warn  (criu/x.c:1): nothing\n"
        "(00.151119)      2: Error (criu/pipes.c:220): Unable to reopen the pipe\n"
        "(00.153538) Error (criu/cr-restore.c:2537): Restoring FAILED.\n"
    )
    assert program.reason(tmp_path, "restore") == "Unable to reopen the pipe"
    (tmp_path / "dump.log").write_text("pie: 2: Error (criu/pie/restorer.c:1833): No thread: -1\n")
    assert program.reason(tmp_path, "dump") == "No thread: -1"
    (tmp_path / "dump.log").unlink()
    assert program.reason(tmp_path, "dump") == "it has left no log"


def test_a_restore_joins_and_makes_nothing() -> None:
    command = program.restore_command(Criu("/usr/sbin/criu", "3.17.1"), 12, 13)
    assert command[:2] == ["/usr/sbin/criu", "restore"]
    assert "fd[11]:pipe:[12]" in command
    assert "fd[12]:pipe:[13]" in command
    assert command[-1] == "user:/proc/self/fd/13,0,0"
    assert "--no-default-config" in command


def test_a_dump_leaves_it_as_it_was() -> None:
    command = program.dump_command(Criu("/usr/sbin/criu", "3.17.1"), 2)
    assert "--leave-running" in command
    assert command[command.index("--freeze-cgroup") + 1] == "/proc/self/fd/11"
