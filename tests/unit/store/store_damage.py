"""Every file of a node's state, damaged in every place: what still loads, and what is put aside."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path

from nativert.errors import Code, NativertError
from nativert.store import boot, schema
from nativert.store.boot import Asked, ExitFacts, Facts, LinkFacts, PortFacts, StopFacts
from nativert.store.durable import Row, Store
from nativert.store.paths import Paths

UUID = "00000000-0000-4000-8000-00000000000{}"
SIDES = ("-wal", "-shm")
Damage = tuple[str, bytes]


def truncated(data: bytes, every: int) -> Iterator[Damage]:
    """Yield *data* cut off at each *every*th byte."""
    for length in range(0, len(data), every):
        yield f"cut at {length}", data[:length]


def flipped(data: bytes, every: int) -> Iterator[Damage]:
    """Yield *data* with one bit the other way, in each *every*th byte."""
    for place in range(0, len(data), every):
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 8)
        yield f"a bit flipped at {place}", bytes(changed)


def damages(data: bytes, every: int) -> Iterator[Damage]:
    """Yield *data* in every way that it is damaged here."""
    yield "empty", b""
    yield "zeros", bytes(len(data))
    yield from truncated(data, every)
    yield from flipped(data, every)


def damaged_everywhere(top: Path, *, every: int) -> tuple[int, list[str]]:
    """Damage facts, ends and the store of nodes under *top*; return how often, and what broke.

    Facts and ends at each byte; of the store at *every* so many, but each boundary of a page.
    """
    paths = Paths(top)
    paths.create()
    count, broken = 0, []
    for kind, write in _small(paths).items():
        found, bad = _small_file(paths, kind, write)
        count, broken = count + found, broken + bad
    found, bad = _store(paths, every)
    return count + found, broken + bad


def _small(paths: Paths) -> dict[str, Callable[[str], Path]]:
    return {
        "facts": lambda uuid: _write_facts(paths, uuid),
        "exit": lambda u: _write_exit(paths, u),
    }


def _write_facts(paths: Paths, uuid: str) -> Path:
    facts = Facts(
        boot_id=boot.boot_id(),
        state="RUNNING",
        run=3,
        init_pid=7,
        init_start=8,
        launcher_pid=6,
        intent="stop",
        started_at=1.5,
        netns_inode=9,
        links=(LinkFacts("eth0", "nv0123450", 11, "02:00:00:00:00:01", "10.70.0.2"),),
        ports=(PortFacts(None, 8080, 80, "tcp"),),
        cgroup=f"i-{uuid}",
        details={"pid": 12, "start": 13, "argv": ["/bin/sh"], "env": {"A": "b"}},
        stop=StopFacts(why="stop", signal=15, at=2.5, grace_s=10.0),
    )
    boot.write_facts(paths, uuid, facts)
    return paths.instance_run(uuid) / boot.FACTS


def _write_exit(paths: Paths, uuid: str) -> Path:
    import msgspec

    path = paths.instance_run(uuid) / boot.EXIT
    path.parent.mkdir(parents=True, exist_ok=True)
    ended = ExitFacts(
        run=3,
        boot_id=boot.boot_id(),
        pid=7,
        start=8,
        started_at=1.5,
        ended_at=2.5,
        exit_code=4,
        peak_bytes=1 << 20,
        cpu_ns=5,
        cause="exited",
        asked=Asked(15, 2.0),
        pids_events=0,
        oom_events=0,
    )
    path.write_bytes(msgspec.json.encode(ended))
    return path


def _small_file(paths: Paths, kind: str, write: Callable[[str], Path]) -> tuple[int, list[str]]:
    """Damage the file of one instance; the other's loads all the same."""
    read = boot.read_facts if kind == "facts" else boot.read_exit
    one, other = UUID.format(1), UUID.format(2)
    write(other)
    sound = read(paths, other)
    count, broken = 0, []
    for what, data in damages(write(one).read_bytes(), 1):
        path = write(one)
        path.write_bytes(data)
        count += 1
        try:
            found = read(paths, one)
        except Exception as e:
            broken.append(f"{kind} {what}: {type(e).__name__}: {e}")
            continue
        aside = [each.name for each in path.parent.iterdir() if ".corrupt" in each.name]
        # A flipped bit may leave what can be read; or it is another boot's, and stays.
        if found is None and not aside and not what.startswith("a bit"):
            broken.append(f"{kind} {what}: neither read nor put aside")
        if read(paths, other) != sound:
            broken.append(f"{kind} {what}: the other's is not what it was")
        shutil.rmtree(path.parent)
    return count, broken


def fill(paths: Paths, count: int) -> list[Row]:
    """Enter *count* instances."""
    with Store(paths) as store:
        return [
            store.add(
                uuid=UUID.format(number),
                name=f"n{number}",
                fdu="web",
                descriptor='{"pad": "' + "x" * 900 + '"}',
                record="{}",
                desired="DEFINED",
                subnet=IPv4Network("10.70.0.0/22"),
                blocks=(0,),
                interfaces=("eth0",),
            )
            for number in range(count)
        ]


def outcome(paths: Paths) -> list[Row] | Code:
    """Open, list and change; a NativertError's code, and no other kind of error."""
    try:
        with Store(paths) as store:
            rows = store.rows()
            store.append_event("i", "k", "{}")
            return rows
    except NativertError as e:
        return e.code


def _store(paths: Paths, every: int) -> tuple[int, list[str]]:
    rows = fill(paths, 8)
    data = paths.database.read_bytes()
    pages = [near for page in range(0, len(data), 4096) for near in (page - 1, page, page + 1)]
    cuts = ((f"cut at {at}", data[:at]) for at in pages if 0 <= at < len(data))
    other_version = bytearray(data)
    other_version[60:64] = (schema.VERSION + 1).to_bytes(4, "big")  # sqlite.org/fileformat
    count, broken = 0, []
    for what, changed in itertools.chain(
        [("of another version", bytes(other_version))], cuts, damages(data, every)
    ):
        paths.database.write_bytes(changed)
        count += 1
        try:
            found = outcome(paths)
        except Exception as e:
            broken.append(f"store {what}: {type(e).__name__}: {e}")
            found = []
        if isinstance(found, Code):
            if found not in (Code.STORE, Code.PERMISSION, Code.TIMEOUT):
                broken.append(f"store {what}: {found}")
        elif len([row for row in found if row not in rows and not row.corrupt]) > 2:
            # A damaged index hides what it should find; reading all of the file shows it.
            with Store(paths) as store:
                if not store.check():
                    broken.append(f"store {what}: several rows are others, and nothing tells")
        for side in SIDES:
            Path(f"{paths.database}{side}").unlink(missing_ok=True)
    paths.database.write_bytes(data)
    if outcome(paths) != rows:
        broken.append("store: the sound file does not load any more")
    return count, broken
