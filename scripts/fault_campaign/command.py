"""Play the parts of the fault campaign that are asked for, and print a table of what came of it."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parents[2]
for below in ("tests/unit/runtime", "tests/unit/store", "tests/integration", "tests", ""):
    sys.path.insert(0, str(TOP / below))
# The agents that are started, and their launchers, are of this checkout too.
os.environ["PYTHONPATH"] = str(TOP)

PARTS = ("cases", "kills", "lives", "memory", "store")


class Figure(NamedTuple):
    """One line of the table."""

    part: str
    played: str
    broken: list[str]
    seconds: float


def main() -> int:
    """Return 1 if an invariant was broken."""
    asked = _arguments()
    sys.stdout.write(f"seed {asked.seed}\n")
    sys.stdout.flush()
    top = Path(tempfile.mkdtemp(prefix="faults-", dir=asked.directory))
    os.chdir(top)
    playing: dict[str, Callable[[argparse.Namespace, Path], Figure]] = {
        "cases": _cases,
        "kills": _kills,
        "lives": _lives,
        "memory": _memory,
        "store": _store,
    }
    figures = []
    try:
        for part in asked.parts or PARTS:
            figures.append(playing[part](asked, top))
            _print(figures[-1:])
    finally:
        os.chdir("/")
        shutil.rmtree(top)
    sys.stdout.write("\n")
    _print(figures)
    return int(any(figure.broken for figure in figures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART",
                        help=f"{', '.join(PARTS)}; all of them unless told")  # fmt: skip
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--seconds", type=float, help="of the cases: begin none later")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--instances", type=int, default=50)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--directory", help="where the nodes are, such as /dev/shm")
    return parser.parse_args()


def _cases(asked: argparse.Namespace, top: Path) -> Figure:
    from fault_campaign import campaign

    result = campaign(top / "cases", seed=asked.seed, limit_s=asked.seconds, tell=_tell)
    by = ", ".join(f"{name} {count}" for name, count in sorted(result.played.items()))
    played = f"{result.played.total()} of {len(result.cases)} cases ({by})"
    return Figure("cases", played, list(result.broken), result.seconds)


def _kills(asked: argparse.Namespace, top: Path) -> Figure:
    from agent_kills import storm

    where = top / "kills" / "node"
    where.parent.mkdir()
    done = storm(where, kills=asked.kills, instances=asked.instances, seed=asked.seed, pause_s=1.0)
    for line in done.broken:
        _tell(line)
    counts = ", ".join(f"{count} {word}" for word, count in sorted(done.asked.items()))
    played = (
        f"{done.kills} kills ({done.before_it_served} before it served), {asked.instances}"
        f" instances, commands: {counts}; {done.events} events, {done.lines} lines of log"
    )
    return Figure("kills", played, done.broken, done.seconds)


def _lives(asked: argparse.Namespace, _: Path) -> Figure:
    from test_fault_lives import OnThisMachine

    # A tenth on the kernel, which takes longer; the rest in memory.
    return _steps("lives", OnThisMachine, asked.steps // 10)


def _memory(asked: argparse.Namespace, _: Path) -> Figure:
    from test_lifecycle_machine import InMemory

    return _steps("memory", InMemory, asked.steps - asked.steps // 10)


def _steps(part: str, machine: type, steps: int) -> Figure:
    from lifecycle import run_for

    began, broken = time.monotonic(), []
    try:
        taken = run_for(machine, steps=steps, examples=100)
    except Exception as e:  # noqa: BLE001 (whatever it is, it is what was broken)
        _tell("".join((str(e), "\n", *getattr(e, "__notes__", ()))))
        broken, taken = [str(e)], machine.steps  # type: ignore[attr-defined]
    return Figure(part, f"{taken} steps", broken, time.monotonic() - began)


def _store(_: argparse.Namespace, top: Path) -> Figure:
    from store_damage import damaged_everywhere

    began = time.monotonic()
    directory = top / "store"
    directory.mkdir()
    count, broken = damaged_everywhere(directory, every=1)
    for line in broken:
        _tell(line)
    return Figure("store", f"{count} damaged files", broken, time.monotonic() - began)


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _print(figures: list[Figure]) -> None:
    _tell("| part | played | broken | seconds |\n|---|---|---|---|")
    for figure in figures:
        _tell(f"| {figure.part} | {figure.played} | {len(figure.broken)} | {figure.seconds:.0f} |")


if __name__ == "__main__":
    sys.exit(main())
