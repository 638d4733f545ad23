"""The kernel's counters of a cgroup, in the formats of v1 and v2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nativert.launcher.application import Evidence, write_exit

V1 = {
    "oom": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    "peak": "67108864\n",
    "cpu": "1234567890\n",
}
V2 = {
    "oom": "low 0\nhigh 12\nmax 40\noom 4\noom_kill 3\noom_group_kill 1\n",
    "peak": "67108864\n",
    "cpu": "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\nnr_throttled 2\n",
}


def evidence(directory: Path, texts: dict[str, str]) -> Evidence:
    for name, text in texts.items():
        (directory / name).write_text(text)
    return Evidence({name: str(directory / name) for name in texts})


@pytest.mark.parametrize(("texts", "cpu_ns"), [(V1, 1234567890), (V2, 1234567000)])
def test_both_formats_say_the_same(tmp_path: Path, texts: dict[str, str], cpu_ns: int) -> None:
    found = evidence(tmp_path, texts)
    assert found.oom_kills() == 3
    assert found.peak_bytes() == 64 << 20
    assert found.cpu_ns() == cpu_ns


def test_counters_are_read_anew_and_by_descriptor(tmp_path: Path) -> None:
    found = evidence(tmp_path, V1)
    (tmp_path / "oom").write_text("oom_kill 4\n")
    assert found.oom_kills() == 4
    # The names are not needed again: init's root is another by then.
    for name in V1:
        (tmp_path / name).unlink()
    assert found.peak_bytes() == 64 << 20


def test_what_the_kernel_does_not_count_is_none() -> None:
    for cgroup in ({}, {"oom": None, "peak": None, "cpu": None}, {"oom": "", "peak": ""}):
        found = Evidence(cgroup)
        assert found.oom_kills() == 0
        assert found.peak_bytes() is None
        assert found.cpu_ns() is None


@pytest.mark.parametrize("text", ["", "\n", "max\n", "something else\n"])
def test_an_unknown_format_is_no_figure(tmp_path: Path, text: str) -> None:
    found = evidence(tmp_path, {"oom": text, "peak": text, "cpu": text})
    assert (found.oom_kills(), found.peak_bytes(), found.cpu_ns()) == (0, None, None)


def test_a_missing_counter_file_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Evidence({"oom": str(tmp_path / "absent")})


def test_exit_json_appears_whole_and_replaces_a_link(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_PATH)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "exit.json").symlink_to(victim)
    write_exit(directory, {"run": 1})
    assert victim.read_text() == "precious"
    assert (tmp_path / "exit.json").read_text() == '{"run": 1}'
    assert sorted(os.listdir(tmp_path)) == ["exit.json", "victim"]
    os.close(directory)


def test_a_directory_that_is_gone_does_not_end_init(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    directory = os.open(gone, os.O_PATH)
    gone.rmdir()
    write_exit(directory, {"run": 1})
    os.close(directory)
