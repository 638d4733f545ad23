"""Which tests this machine can run, and the proof that root tests leave nothing behind.

A test whose marker asks for more than the kernel offers is skipped with the reason. What
NATIVERT_REQUIRE names (a list with commas) must be there: then it fails. With `all`, every
marker is required and a test that skips itself fails too. NATIVERT_CENSUS=report prints what
was left behind and does not fail for it, for machines on which others work at the same time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import census as host
import kernel
import pytest
import scale
from hypothesis import HealthCheck, settings

REQUIRED = frozenset(filter(None, os.environ.get("NATIVERT_REQUIRE", "").split(",")))

# How long an example takes says more about what else this machine does than about the code.
settings.register_profile(
    "nativert", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("nativert")

# "1/2": this is the first of two machines that share the tests.
SHARD = os.environ.get("NATIVERT_SHARD", "")
OTHERS = pytest.StashKey[int]()
SELECTED = pytest.StashKey[int]()

# What was seen for the first time after which test; the session's verdict names the culprit.
_first_seen: dict[str, str] = {}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "apps: needs redis-server, nginx and gcc")
    config.addinivalue_line("markers", "bench: needs crun, runc and bwrap to compare with")
    unknown = REQUIRED - kernel.PROBES.keys() - {"all"}
    if unknown:
        raise pytest.UsageError(
            f"NATIVERT_REQUIRE: {', '.join(sorted(unknown))}: known are"
            f" {', '.join(kernel.PROBES)}, all"
        )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep this machine's share, and give every test its time as this machine needs it."""
    if SHARD:
        own = _share(items)
        others = [item for item in items if item.path not in own]
        config.hook.pytest_deselected(items=others)
        config.stash[OTHERS] = len(others)
        items[:] = [item for item in items if item.path in own]
    ordinary_s = float(config.getini("timeout"))
    for item in items:
        own = item.get_closest_marker("timeout")
        timeout_s = float(own.args[0]) if own and own.args else ordinary_s
        item.add_marker(pytest.mark.timeout(scale.seconds(timeout_s)), append=False)


def _share(items: list[pytest.Item]) -> set[Path]:
    """Return the files of this machine: each machine gets about as many tests."""
    number, machines = (int(part) for part in SHARD.split("/"))
    shares: list[tuple[int, set[Path]]] = [(0, set()) for _ in range(machines)]
    for path, tests in sorted(Counter(item.path for item in items).items(), key=_largest_first):
        least = min(range(machines), key=lambda index: shares[index][0])
        shares[least] = (shares[least][0] + tests, shares[least][1] | {path})
    return shares[number - 1][1]


def _largest_first(file: tuple[Path, int]) -> tuple[int, Path]:
    return -file[1], file[0]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    # A few tests can all be another machine's.
    nothing = exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED
    if nothing and session.config.stash.get(OTHERS, 0):
        session.exitstatus = pytest.ExitCode.OK


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[SELECTED] = len(session.items)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the line that .ci/run adds up: tests, where pytest itself counts their parts."""
    seen = {
        word: {report.nodeid for report in terminalreporter.stats.get(word, ())}
        for word in ("passed", "failed", "error", "skipped")
    }
    failed = seen["failed"] | seen["error"]
    terminalreporter.write_line(
        f"tests: selected {config.stash.get(SELECTED, 0)}, passed {len(seen['passed'] - failed)},"
        f" failed {len(failed)}, skipped {len(seen['skipped'])}"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run; a missing right is a failure where it is required."""
    for name, probe in kernel.PROBES.items():
        if item.get_closest_marker(name) and (reason := probe()):
            if REQUIRED & {name, "all"}:
                pytest.fail(f"{reason}, and NATIVERT_REQUIRE forbids skipping", pytrace=False)
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and "all" in REQUIRED and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason} ({item.nodeid}), and NATIVERT_REQUIRE forbids skipping"
    return report


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and not kernel.root():
        for line in host.take():
            _first_seen.setdefault(line, item.nodeid)


@pytest.fixture(scope="session", autouse=True)
def census(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the session if its root tests left something on the host."""
    if kernel.root() or not any(item.get_closest_marker("root") for item in request.session.items):
        yield
        return
    before = host.take()
    yield
    report = os.environ.get("NATIVERT_CENSUS") == "report"
    # Where others work there is always something.
    patience_s = scale.seconds(5) if report else scale.LONG_S
    left = [
        f"  {line}  <- {_first_seen.get(line, 'the last test, or a fixture of the session')}"
        for line in host.leftovers(before, deadline_s=patience_s)
    ]
    if left:
        verdict = "left on this host:\n" + "\n".join(left)
        if report:
            request.config.get_terminal_writer().line("\n" + verdict)
        else:
            pytest.fail(verdict, pytrace=False)
