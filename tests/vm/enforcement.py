"""What a hierarchy enforces, as seen: which interface files change when a limit is applied.

As a program it writes the table in docs/testing.md anew, from the files that
`scripts/vm-test --out DIR -- tests/vm/test_enforcement.py` leaves for each hierarchy:

    python tests/vm/enforcement.py DIR/enforced-v2.json DIR/enforced-v1.json ...
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nativert.isolation.cgroups import UnenforceableError, detect
from nativert.isolation.cgroups.driver import Cgroup, Driver
from nativert.isolation.cgroups.limits import IoLimit, Limits

PAGE = Path(__file__).resolve().parents[2] / "docs/testing.md"
BEGIN, END = "<!-- enforced: begin -->\n", "<!-- enforced: end -->\n"
HIERARCHIES = ("v2", "hybrid", "v1")
MOUNTS = Path("/sys/fs/cgroup")
PARENT = "nativert-table"
MIB = 1 << 20
NO = "refused"


def limits() -> dict[str, Limits]:
    """Return what can be asked for, each alone where it makes sense alone.

    None of it is what a new cgroup has: CPU 0 alone is one of at least two.
    """
    device = os.stat("/").st_dev
    disk = f"{os.major(device)}:{os.minor(device)}"
    return {
        "cpu.max": Limits(cpu_max=0.5),
        "cpu.weight": Limits(cpu_weight=200),
        "cpu.cpuset": Limits(cpuset="0"),
        "memory.max": Limits(memory_max=64 * MIB),
        "memory.high": Limits(memory_high=32 * MIB),
        "memory.swap": Limits(memory_max=64 * MIB, memory_swap=32 * MIB),
        "pids.max": Limits(pids_max=20),
        "io rbps, wbps": Limits(io=(IoLimit(disk, rbps=MIB, wbps=MIB),)),
        "io riops, wiops": Limits(io=(IoLimit(disk, riops=100, wiops=100),)),
    }


def see() -> dict[str, str]:
    """Return row -> the interface files that carry it here, or that it is refused."""
    driver = detect(PARENT)
    driver.prepare()
    try:
        seen = {row: _limit(driver, asked) for row, asked in limits().items()}
        # Without the memory limit that the swap limit needs beside it.
        if seen["memory.swap"] != NO:
            own = seen["memory.swap"].split(", ")
            seen["memory.swap"] = ", ".join(f for f in own if f not in seen["memory.max"])
        return seen | _processes(driver)
    finally:
        driver.destroy()


@contextmanager
def _cgroup(driver: Driver) -> Iterator[Cgroup]:
    cgroup = driver.create("seen")
    try:
        yield cgroup
    finally:
        cgroup.remove()


def _limit(driver: Driver, asked: Limits) -> str:
    try:
        driver.check(asked)
    except UnenforceableError:
        return NO
    with _cgroup(driver) as cgroup:
        before = _settings()
        assert cgroup.apply(asked) == asked
        after = _settings()
    return _files({name for name in after if after[name] != before.get(name)})


def _processes(driver: Driver) -> dict[str, str]:
    with _cgroup(driver) as cgroup:
        entry = cgroup.entry()
        join = [*entry.tasks, *([f"{entry.into}/cgroup.procs"] if entry.into else [])]
        script = "".join(f"echo 0 >{path}\n" for path in join) + "exec sleep 1000"
        with subprocess.Popen(["sh", "-c", script]) as process:
            while not cgroup.populated():
                pass
            before = _settings()
            cgroup.freeze(60)
            frozen = _settings()
            cgroup.thaw(60)
            names = set(before)
            cgroup.kill()
            assert process.wait(60) == -9
        changed = {name for name in frozen if "freez" in name and frozen[name] != before[name]}
    kill = "cgroup.kill" if "cgroup.kill" in names else "SIGKILL to each process"
    return {
        "pause": _files(changed),
        "kill": f"`{kill}`" if kill == "cgroup.kill" else kill,
    }


def _settings() -> dict[str, str]:
    """Return every interface file of the cgroup that can be written, by name."""
    found = {}
    for directory, _, names in os.walk(MOUNTS):
        if not directory.endswith(f"/{PARENT}/seen"):
            continue
        for name in names:
            path = Path(directory, name)
            if path.stat().st_mode & 0o200:
                try:
                    found[name] = path.read_text()
                except OSError:
                    found[name] = ""  # Can only be written.
    return found


def _files(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def table(columns: dict[str, dict[str, str]]) -> str:
    """Return the columns, by hierarchy, as Markdown."""
    rows = [("", *HIERARCHIES), ("---",) * (1 + len(HIERARCHIES))]
    rows += [(row, *(columns[h][row] for h in HIERARCHIES)) for row in columns[HIERARCHIES[0]]]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def on_page() -> dict[str, dict[str, str]]:
    """Return the columns of the table on the page."""
    _, _, rest = PAGE.read_text().partition(BEGIN)
    lines = [line.strip("| \n").split(" | ") for line in rest.partition(END)[0].splitlines()]
    header, _, *rows = lines or [[], []]
    return {
        hierarchy: {row[0]: row[number] for row in rows}
        for number, hierarchy in enumerate(header, start=1)
    }


def main(paths: list[str]) -> None:
    columns = on_page() if BEGIN in PAGE.read_text() else {}
    for path in paths:
        columns |= json.loads(Path(path).read_text())
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(columns) + END + rest.partition(END)[2])


if __name__ == "__main__":
    main(sys.argv[1:])
