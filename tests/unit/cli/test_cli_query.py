"""ps, inspect, stats, logs, and what needs no instance."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest

from nativert.cli.main import main
from nativert.runtime.views import Check, End, Event, Leftover, LogLine

PS_KEYS = [
    "instance",
    "fdu",
    "name",
    "state",
    "node",
    "pid",
    "restarts",
    "cpu_ratio",
    "memory_bytes",
    "pids",
    "uptime_s",
    "end",
]


def test_ps_shows_what_runs_and_all_with_a(node, nativert):
    for name, state in (("a", "RUNNING"), ("b", "PAUSED"), ("c", "CONFIGURED"), ("d", "DEFINED")):
        node.add(name, state)
    shown = json.loads(nativert("ps", "-o", "json").out)
    assert [row["name"] for row in shown] == ["a", "b"]
    every = json.loads(nativert("ps", "-a", "-o", "json").out)
    assert [row["name"] for row in every] == ["a", "b", "c", "d"]
    assert list(every[0]) == PS_KEYS


def test_ps_q_is_for_xargs(node, nativert):
    row = node.add("a", "RUNNING")
    node.add("b", "DEFINED")
    assert nativert("ps", "-q").out == f"{row.instance}\n"
    assert len(nativert("ps", "-aq").out.splitlines()) == 2
    assert json.loads(nativert("ps", "-q", "-o", "json").out) == [row.instance]


def test_events_of_one_instance_by_name_or_prefix(node, nativert):
    node.happened = [
        Event(seq=seq, time=0.0, instance=instance, name=name, kind="started", data={})
        for seq, (instance, name) in enumerate(
            [("00000001-0", "web"), ("00000002-0", "db"), ("00000001-0", "renamed"), ("", "")], 1
        )
    ]

    def shown(*args: str) -> list[int]:
        lines = nativert("events", "-o", "json", *args).out.splitlines()
        return [json.loads(line)["seq"] for line in lines]

    assert shown() == [1, 2, 3, 4]
    assert shown("db") == [2]
    assert shown("00000001") == [1, 3]
    assert shown("web", "db") == [1, 2]
    assert shown("--after", "1", "web") == []


def test_ps_is_aligned_plain_text_when_no_person_reads_it(node, nativert):
    node.add(
        "web", "RUNNING", pid=4711, cpu_ratio=0.5, memory_bytes=3 << 19, pids=4, uptime_s=3725.0
    )
    node.add("a-longer-name", "PAUSED")
    assert nativert("ps").out.splitlines() == [
        "INSTANCE  NAME           STATE     PID   CPU   MEMORY  PIDS  UPTIME",
        "00000001  web            RUNNING  4711  0.50  1.5 MiB     4   1h02m",
        "00000002  a-longer-name  PAUSED      -     -        -     -       -",
    ]


def test_ps_a_tells_how_applications_ended(node, nativert):
    end = End(reason="oom", message="killed by the kernel: out of memory", oom=True)
    node.add("web", "CONFIGURED", end=end)
    assert "killed by the kernel: out of memory" in nativert("ps", "-a").out


def test_a_table_for_a_person_is_made_by_rich(node, nativert, monkeypatch, capfd):
    node.add("web", "RUNNING")
    node.add("[red]x", "PAUSED")
    monkeypatch.setattr("nativert.cli.output.on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    out = nativert("ps").out
    assert "web" in out
    assert "[red]x" in out
    assert "rich.table" in sys.modules


def test_inspect_prints_the_record(node, nativert):
    row = node.add("web", "RUNNING")
    assert json.loads(nativert("inspect", "web").out) == {"uuid": row.instance, "native": {}}
    assert nativert("inspect", "nobody").code == 3


def test_stats_of_all_and_of_some(node, nativert):
    node.add("a", "RUNNING")
    node.add("b", "RUNNING")
    assert [f["name"] for f in json.loads(nativert("stats", "-o", "json").out)] == ["a", "b"]
    assert [f["name"] for f in json.loads(nativert("stats", "b", "-o", "json").out)] == ["b"]
    assert "2.0 KiB" in nativert("stats").out


def test_stats_watch_repeats_until_it_is_interrupted(node, nativert, monkeypatch):
    from nativert.cli import interrupts, query

    node.add("a", "RUNNING")
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise interrupts.Interrupted(2)

    clock = SimpleNamespace(monotonic=lambda: 100 + sum(slept), sleep=sleep)
    monkeypatch.setattr(query, "time", clock)
    result = nativert("stats", "--watch", "500ms", "-o", "json")
    assert result.code == 130
    assert [json.loads(line)["name"] for line in result.out.splitlines()] == ["a"] * 3
    assert slept == [0.5, 0.5, 0.5]


def test_stats_watch_needs_an_interval(node, nativert):
    assert nativert("stats", "--watch", "0").code == 2


LINES = [
    LogLine(time="2026-01-01T00:00:00Z", stream="stdout", text=b"caf\xc3\xa9 \xff"),
    LogLine(time="2026-01-01T00:00:01Z", stream="stderr", text=b"bad"),
    LogLine(time="2026-01-01T00:00:02Z", stream="stdout", text=b"be", partial=True),
    LogLine(time="2026-01-01T00:00:03Z", stream="stdout", text=b"gun"),
]


def test_logs_keep_streams_and_bytes(node, capfdbinary):
    node.add("web", "RUNNING")
    node.lines = LINES
    with pytest.raises(SystemExit):
        main(["logs", "web"])
    assert capfdbinary.readouterr() == (b"caf\xc3\xa9 \xff\nbegun\n", b"bad\n")


def test_logs_options(node, nativert):
    node.add("web", "RUNNING")
    node.lines = LINES
    node.ended.set()
    assert nativert("logs", "--tail", "1", "-f", "web").out == "gun\n"
    assert node.calls[-1] == ("logs", True, 1)
    assert nativert("logs", "--tail", "0", "web").out == ""
    stamped = nativert("logs", "--timestamps", "--tail", "3", "web")
    assert stamped.out == "2026-01-01T00:00:02Z begun\n"
    assert stamped.err == "2026-01-01T00:00:01Z bad\n"


def test_logs_as_json_lines(node, nativert):
    node.add("web", "RUNNING")
    node.lines = LINES
    lines = [json.loads(line) for line in nativert("logs", "web", "-o", "json").out.splitlines()]
    assert lines[0] == {
        "time": "2026-01-01T00:00:00Z",
        "stream": "stdout",
        "text": "café \\xff",
        "partial": False,
    }
    assert [line["stream"] for line in lines] == ["stdout", "stderr", "stdout", "stdout"]


def test_doctor_fails_when_something_is_missing(node, nativert):
    good = Check(name="cgroups", ok=True, detail="hybrid")
    bad = Check(name="memory", ok=False, detail="off", fix="add cgroup_enable=memory")
    node.checks = [good]
    assert nativert("doctor").code == 0
    node.checks = [good, bad]
    result = nativert("doctor")
    assert result.code == 1
    shown = [line.split(maxsplit=3) for line in result.out.splitlines()[1:]]
    assert shown[:2] == [
        ["✓", "cgroups", "hybrid", "-"],
        ["✗", "memory", "off", "add cgroup_enable=memory"],
    ]
    # No agent serves here, and nothing needs one.
    assert shown[2][:3] == ["-", "agent", "none"]
    assert json.loads(nativert("doctor", "-o", "json").out)[1]["fix"] == "add cgroup_enable=memory"


def test_gc_tells_what_is_left_over(node, nativert):
    assert nativert("gc").out == "nothing is left over\n"
    assert nativert("gc", "-o", "json").out == "[]\n"
    node.leftovers = [Leftover(kind="link", name="nv1", removed=False)]
    dry = nativert("gc", "--dry-run")
    assert (dry.code, dry.out.splitlines()[1]) == (0, "link  nv1   no")
    assert nativert("gc").out.splitlines()[1] == "link  nv1   yes"


def test_gc_that_could_not_remove_all_fails(node, nativert, monkeypatch):
    stuck = [Leftover(kind="link", name="nv1", removed=False)]
    monkeypatch.setattr(node, "gc", lambda *, dry_run: stuck)
    assert nativert("gc").code == 1


@pytest.mark.parametrize(
    ("form", "begin"), [("text", "ACTION"), ("mermaid", "stateDiagram"), ("dot", "digraph")]
)
def test_states_in_each_format(nativert, form, begin):
    assert nativert("states", "--format", form).out.startswith(begin)


def test_states_as_json_have_the_whole_table(nativert):
    from nativert.fdu.states import TABLE

    rows = json.loads(nativert("states", "-o", "json").out)
    assert len(rows) == len(TABLE)
    scale = next(row for row in rows if row["action"] == "scale")
    assert scale == {
        "action": "scale",
        "from": ["RUNNING"],
        "through": ["SCALING"],
        "to": "RUNNING",
    }


VALID = """{"id": "app", "name": "app", "hypervisor": "BARE",
 "command": {"binary": "/bin/true", "args": []}}"""


def test_validate_a_file_and_stdin(nativert, tmp_path, monkeypatch):
    path = tmp_path / "app.json"
    path.write_text(VALID)
    assert nativert("validate", str(path)).out == f"{path}: valid\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(VALID.encode())))
    answer = json.loads(nativert("validate", "-", "-o", "json").out)
    assert answer == {"valid": True, "id": "app", "name": "app"}


def test_validate_names_the_field_that_is_wrong(nativert, tmp_path):
    path = tmp_path / "app.json"
    path.write_text(VALID.replace('"hypervisor"', '"hypervisr"'))
    result = nativert("validate", str(path), "-o", "json")
    assert result.code == 2
    error = json.loads(result.err)["error"]
    assert error["code"] == "bad-descriptor"
    assert "hypervisr" in error["message"]


def test_schema_is_a_json_schema(nativert):
    assert json.loads(nativert("schema").out)["$schema"].endswith("2020-12/schema")


def test_version_names_the_kernel_too(nativert):
    import os

    versions = json.loads(nativert("version", "-o", "json").out)
    assert versions["kernel"] == os.uname().release
    assert nativert("version").out.startswith(f"nativert {versions['nativert']}\n")
