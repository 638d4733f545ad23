"""The command line of the benchmark, and the order in which everything is measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmark import population
from benchmark.figures import MODES, Samples
from benchmark.peers import OciPeer, Worker, make_peers
from benchmark.subject import Subject

_IDLE_S = 0.3
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LIVES = (
    ("define", "configure", "run", "pause", "resume", "scale", "exec", "stop", "clean", "undefine"),
    ("define-veth", "configure-veth", "clean-veth", "undefine-veth"),
    ("whole",),
)
# The second life is there for the network; its first and last step say nothing new.
OPERATIONS = tuple(
    operation
    for life in _LIVES
    for operation in life
    if not operation.endswith("define-veth") and operation != "undefine-veth"
)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure nativert beside crun, runc and bwrap, in one run, in turns."
        " Cold is with 300 ms of idleness before each operation, as a daemon sees it; hot is"
        " back to back. Times in microseconds.",
    )
    parser.add_argument("-n", type=int, default=30, help="samples per operation (default 30)")
    parser.add_argument("--json", metavar="FILE", help="write the operations to FILE; - is stdout")
    parser.add_argument("--only", metavar="OPERATION", nargs="+", choices=OPERATIONS)
    parser.add_argument("--mode", choices=MODES, help="only cold or only hot")
    parser.add_argument(
        "--rate", metavar="N", type=int, help="instances of the rate and memory test (default 100)"
    )
    parser.add_argument("--quick", action="store_true", help="few samples, to see that all works")
    parser.add_argument(
        "--full-peers",
        action="store_true",
        help="give crun and runc the user namespace and the seccomp filter too, as nativert has"
        " them always (default: without, which is less work for them)",
    )
    parser.add_argument(
        "--fog05",
        action="store_true",
        help="instead: starts by fog05's own client beside the runtime's (needs setup --dev)",
    )
    parser.add_argument(
        "--fleet",
        action="store_true",
        help="instead: fleets of three nodes, their making, and requests from one node to another",
    )
    parser.add_argument(
        "--migration",
        action="store_true",
        help="instead: a counter that is moved between two nodes of a fleet, N times",
    )
    given = parser.parse_args()
    if given.quick:
        given.n = min(given.n, 3)
        given.rate = given.rate or 10
    if given.n < 1 or (given.rate is not None and given.rate < 1):
        parser.error("-n and --rate must be at least 1")
    return given


def _round_cold(
    subjects: Sequence[Any], wanted: Sequence[str], samples: Samples, *, turn: int, keep: bool
) -> None:
    # Operation by operation, everybody in turn: whatever the machine does, it does to all.
    order = [*subjects[turn % len(subjects) :], *subjects[: turn % len(subjects)]]
    for life in _chosen(wanted):
        for operation in life:
            for subject in order:
                act = subject.operations.get(operation)
                if act is None:
                    continue
                if operation in wanted:
                    time.sleep(_IDLE_S)
                us = act()
                if keep and operation in wanted:
                    samples.add(subject.name, operation, "cold", us)


def _round_hot(
    subjects: Sequence[Any], wanted: Sequence[str], samples: Samples, *, turn: int, keep: bool
) -> None:
    # Life by life: another's operation in between would cool what hot means to keep warm.
    order = [*subjects[turn % len(subjects) :], *subjects[: turn % len(subjects)]]
    for life in _chosen(wanted):
        for subject in order:
            for operation in life:
                act = subject.operations.get(operation)
                if act is None:
                    continue
                us = act()
                if keep and operation in wanted:
                    samples.add(subject.name, operation, "hot", us)


def _chosen(wanted: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return (life for life in _LIVES if set(life) & set(wanted))


def _application(directory: Path) -> Path:
    where = directory / "application"
    where.mkdir()
    source = Path(__file__).with_name("app.c")
    subprocess.run(["gcc", "-O1", "-static", "-o", str(where / "app"), str(source)], check=True)
    return where / "app"


@contextmanager
def _workplace() -> Iterator[Path]:
    # A mapped root must get through it, so it is not private as mkdtemp makes it.
    directory = Path(tempfile.mkdtemp(prefix="nativert-bench-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _measure(given: argparse.Namespace, samples: Samples) -> None:
    wanted = tuple(given.only or OPERATIONS)
    modes = (given.mode,) if given.mode else MODES
    rounds = {"cold": _round_cold, "hot": _round_hot}
    with ExitStack() as undo:
        directory = undo.enter_context(_workplace())
        application = _application(directory)
        worker = Worker()
        undo.callback(worker.close)
        peers = make_peers(worker, directory, application, full=given.full_peers)
        for peer in peers:
            undo.callback(peer.close)
        subject = Subject(directory, application)
        undo.callback(subject.close)
        subjects = [subject, *peers]
        # Once unmeasured: imports, caches, the node's bridge and launcher.
        _round_hot(subjects, OPERATIONS, samples, turn=0, keep=False)
        # The launcher puts off the priority that it inherits; the peers keep it.
        subject.hurry()
        for turn in range(given.n):
            for mode in modes:
                _note(f"round {turn + 1} of {given.n}, {mode}")
                rounds[mode](subjects, wanted, samples, turn=turn, keep=True)
        _note("")
        print("\n".join(samples.table(OPERATIONS)))
        if given.only is None or given.rate:
            crun = next(peer for peer in peers if isinstance(peer, OciPeer))
            print()
            for what, figure in population.measure(subject, crun, given.rate or 100):
                print(f"{what:36}{figure}")


def _note(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _interrupt(_number: int, _frame: object) -> None:
    # Once: what comes again, and timeout(1) sends twice, must not stop the clean-up.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Measure, print the table, write the JSON; 130 after an interrupt, all removed."""
    given = _arguments()
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    # What else the machine does should weigh little, and weigh the same for all.
    os.nice(-20)
    samples = Samples()
    print(
        f"{platform.machine()}, Linux {platform.release()}, {os.cpu_count()} cpus,"
        f" Python {platform.python_version()}; n={given.n};"
        f" peers {'with' if given.full_peers else 'without'} user namespace and seccomp"
    )
    try:
        if given.fog05:
            from benchmark import fog05

            return fog05.main(given.n)
        if given.fleet:
            from benchmark import fleet

            return fleet.main(given.n)
        if given.migration:
            from benchmark import migration

            return migration.main(given.n)
        _measure(given, samples)
    except KeyboardInterrupt:
        print("bench: interrupted; everything is removed", file=sys.stderr)
        return 130
    if given.json:
        text = json.dumps(samples.rows(OPERATIONS), indent=1) + "\n"
        if given.json == "-":
            sys.stdout.write(text)
        else:
            Path(given.json).write_text(text)
    return 0
