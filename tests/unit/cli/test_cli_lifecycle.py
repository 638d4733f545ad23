"""The operations on instances: arguments, results, several instances at once."""

from __future__ import annotations

import json

import pytest
from cli_fake_node import UUIDS

from nativert.errors import Code, NativertError, TransitionError
from nativert.runtime.views import End


@pytest.mark.parametrize(
    ("verb", "before", "after"),
    [
        ("configure", "DEFINED", "CONFIGURED"),
        ("start", "CONFIGURED", "RUNNING"),
        ("restart", "RUNNING", "RUNNING"),
        ("stop", "RUNNING", "RUNNING"),
        ("pause", "RUNNING", "PAUSED"),
        ("resume", "PAUSED", "RUNNING"),
        ("clean", "CONFIGURED", "DEFINED"),
        ("undefine", "DEFINED", "UNDEFINED"),
        ("rm", "CONFIGURED", "UNDEFINED"),
    ],
)
def test_each_verb_does_its_operation_and_names_the_state(node, nativert, verb, before, after):
    node.add("web", before)
    result = nativert(verb, "web")
    assert (result.code, result.out, result.err) == (0, f"web {after}\n", "")
    called = {"start": "run", "rm": "remove"}.get(verb, verb)
    assert called in [call[0] for call in node.calls]


def test_json_is_one_list_whatever_the_number_of_instances(node, nativert):
    node.add("web", "RUNNING")
    rows = json.loads(nativert("pause", "web", "-o", "json").out)
    assert [(row["name"], row["state"]) for row in rows] == [("web", "PAUSED")]
    assert rows[0]["instance"] == UUIDS[0]


def test_all_instances_are_tried_and_the_worst_code_wins(node, nativert):
    for name, state in (("a", "RUNNING"), ("b", "DEFINED"), ("c", "RUNNING")):
        node.add(name, state)
    result = nativert("pause", "a", "nobody", "b", "c")
    assert result.code == 4  # refused transition, above 3 for the unknown one
    assert result.out == "a PAUSED\nc PAUSED\n"
    assert result.err.splitlines() == [
        "nativert: nobody: no such instance (see nativert ps -a)",
        "nativert: cannot pause: the instance is DEFINED (allowed: something)",
    ]


def test_json_errors_are_one_object_per_failed_instance(node, nativert):
    node.add("a", "RUNNING")
    result = nativert("-o", "json", "pause", "a", "x", "y")
    assert len(json.loads(result.out)) == 1
    errors = [json.loads(line)["error"] for line in result.err.splitlines()]
    assert [(e["code"], e["message"]) for e in errors] == [
        ("not-found", "x: no such instance"),
        ("not-found", "y: no such instance"),
    ]
    assert errors[0]["hint"] == "see nativert ps -a"
    assert result.code == 3


def test_start_hands_the_variables_over(node, nativert):
    node.add("web", "CONFIGURED")
    assert nativert("start", "--env", "A=1", "web", "--env", "B=x=y").code == 0
    assert ("env", {"A": "1", "B": "x=y"}) in node.calls


def test_a_variable_without_a_value_is_wrong_usage(node, nativert):
    result = nativert("start", "--env", "A", "web")
    assert result.code == 2
    assert "--env" in result.err
    assert node.calls == []


def test_a_download_is_shown_on_a_terminal_only(node, nativert, monkeypatch):
    for name in ("a", "b"):
        node.add(name, "DEFINED")
    assert nativert("configure", "a").err == ""
    monkeypatch.setattr("nativert.cli.progress.on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = nativert("configure", "b")
    assert "1.0/4.0 MiB" in result.err
    assert result.out == "b CONFIGURED\n"


@pytest.mark.parametrize(("option", "number"), [([], 9), (["-s", "TERM"], 15), (["-s", "1"], 1)])
def test_kill_sends_the_signal(node, nativert, option, number):
    node.add("web", "RUNNING")
    assert nativert("kill", *option, "web").code == 0
    assert node.calls == [("kill", "web", number)]


def test_wait_prints_the_exit_code_and_succeeds(node, nativert):
    node.add("web", "RUNNING")
    node.finish(End(reason="signal", message="killed", signal="SIGSEGV"))
    result = nativert("wait", "web")
    assert (result.code, result.out) == (0, "139\n")


def test_wait_that_takes_too_long_is_exit_code_6(node, nativert):
    node.add("web", "RUNNING")
    result = nativert("wait", "--timeout", "20ms", "web")
    assert (result.code, result.out) == (6, "")
    assert "still running" in result.err


def test_rm_force_is_handed_over(node, nativert):
    node.add("web", "PAUSED")
    assert nativert("rm", "--force", "web").code == 0
    assert ("remove", "web", True) in node.calls


def test_define_prints_the_uuid_alone(node, nativert, tmp_path):
    path = tmp_path / "app.json"
    path.write_text(DESCRIPTOR)
    assert nativert("define", str(path), "--name", "other").out == UUIDS[0] + "\n"
    row = json.loads(nativert("define", str(path), "-o", "json").out)
    assert (row["instance"], row["name"], row["state"]) == (UUIDS[1], "app", "DEFINED")


def test_a_descriptor_that_is_not_there_is_exit_code_2(node, nativert, tmp_path):
    result = nativert("define", str(tmp_path / "none.yaml"))
    assert result.code == 2
    assert result.err == f"nativert: {tmp_path}/none.yaml: No such file or directory\n"


def test_scale_turns_options_into_the_fields_of_the_limits(node, nativert):
    node.add("web", "RUNNING")
    options = "--cpu 0.5 --memory 64M --memory-high max --swap 0 --pids 32 --cpuset 0-1 --weight 50"
    assert nativert("scale", "web", *options.split(), "--force").code == 0
    expected = {
        "cpu_max": 0.5,
        "memory_max": 64 << 20,
        "memory_high": None,
        "memory_swap": 0,
        "pids_max": 32,
        "cpuset": "0-1",
        "cpu_weight": 50,
    }
    assert node.calls == [("scale", expected, True)]


def test_scale_io_names_only_the_keys_that_are_given(node, nativert):
    node.add("web", "RUNNING")
    io = ["--io", "/dev/sda:rbps=1M,wiops=max", "--io", "8:0:riops=100"]
    assert nativert("scale", "web", *io).code == 0
    [(_, change, force)] = node.calls
    assert change == {
        "io": [
            {"device": "/dev/sda", "rbps": 1 << 20, "wiops": None},
            {"device": "8:0", "riops": 100},
        ]
    }
    assert force is False


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--cpu", "0"],
        ["--cpu", "nan"],
        ["--cpu", "inf"],
        ["--memory", "many"],
        ["--pids", "0"],
        ["--weight", "0"],
        ["--weight", "10001"],
        ["--cpuset", "3-1"],
        ["--io", "/dev/sda"],
        ["--io", "/dev/sda:speed=1"],
        ["--io", "/dev/sda:rbps="],
        ["--io", ":rbps=1"],
    ],
)
def test_scale_refuses_what_no_limit_can_be(node, nativert, options):
    node.add("web", "RUNNING")
    result = nativert("scale", "web", *options)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert node.calls == []


def test_an_error_of_the_node_keeps_its_code_and_hint(node, nativert):
    node.add("web", "DEFINED")
    node.fail["configure"] = NativertError("web: memory", code=Code.UNENFORCEABLE, hint="enable it")
    result = nativert("configure", "web", "-o", "json")
    assert result.code == 1
    assert json.loads(result.err) == {
        "error": {"code": "unenforceable-limit", "message": "web: memory", "hint": "enable it"}
    }


DESCRIPTOR = """{"id": "app", "name": "app", "hypervisor": "BARE",
 "command": {"binary": "/bin/true", "args": []}}"""


def test_a_refusal_speaks_of_the_command_that_is_meant(node, nativert):
    node.add("web", "DEFINED")
    node.fail["run"] = TransitionError("run", "DEFINED", ["undefine", "run"], name="web")
    result = nativert("start", "web")
    assert result.code == 4
    assert result.err == (
        "nativert: web: cannot start: the instance is DEFINED (allowed: undefine, start)\n"
    )
