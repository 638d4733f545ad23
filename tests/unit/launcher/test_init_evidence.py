"""The kernel's counters of a cgroup, in the formats of v1 and v2, as init reads them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from native_init import driver

V1 = {
    "oom": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    "peak": "67108864\n",
    "cpu": "1234567890\n",
    "pids": "max 5\n",
}
V2 = {
    "oom": "low 0\nhigh 12\nmax 40\noom 4\noom_kill 3\noom_group_kill 1\n",
    "peak": "67108864\n",
    "cpu": "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\nnr_throttled 2\n",
    "pids": "max 5\n",
}


class Counters(NamedTuple):
    """-1 is what the kernel does not count."""

    oom_kills: int
    oom_events: int
    pids_events: int
    cpu_ns: int
    peak_bytes: int


def counters(directory: Path, texts: dict[str, str]) -> Counters:
    paths = []
    for name in ("oom", "peak", "cpu", "pids"):
        if name in texts:
            (directory / name).write_text(texts[name])
        paths.append(str(directory / name) if name in texts else "-")
    done = subprocess.run(
        [driver("drive_evidence"), *paths], capture_output=True, text=True, check=True
    )
    return Counters(*map(int, done.stdout.split()))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [(V1, (3, -1, 5, 1234567890, 64 << 20)), (V2, (3, 4, 5, 1234567000, 64 << 20))],
)
def test_both_formats_say_the_same(
    tmp_path: Path, texts: dict[str, str], expected: tuple[int, ...]
) -> None:
    assert counters(tmp_path, texts) == expected


def test_what_the_kernel_does_not_count_is_none(tmp_path: Path) -> None:
    assert counters(tmp_path, {}) == (0, -1, -1, -1, -1)


@pytest.mark.parametrize("text", ["", "\n", "max\n", "something else\n", "9" * 30, "oom_kill x\n"])
def test_an_unknown_format_is_no_figure(tmp_path: Path, text: str) -> None:
    texts = dict.fromkeys(("oom", "peak", "cpu", "pids"), text)
    assert counters(tmp_path, texts) == (0, -1, -1, -1, -1)


def test_a_file_that_is_longer_than_expected_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    text = "oom_kill 7\n" + "x" * 10_000
    assert counters(tmp_path, {"oom": text}).oom_kills == 7
