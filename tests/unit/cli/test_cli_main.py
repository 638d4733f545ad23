"""Global options, help, and the form and exit code of every kind of error."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nativert.cli import context
from nativert.errors import Code, StepError

COMMANDS = [
    "run",
    "define",
    "configure",
    "start",
    "restart",
    "stop",
    "kill",
    "wait",
    "pause",
    "resume",
    "scale",
    "migrate",
    "clean",
    "undefine",
    "rm",
    "ps",
    "inspect",
    "logs",
    "exec",
    "ls",
    "get",
    "put",
    "stats",
    "top",
    "events",
    "states",
    "validate",
    "schema",
    "node",
    "up",
    "down",
    "agent",
    "plugin",
    "zenoh",
    "gc",
    "doctor",
    "backup",
    "restore",
    "version",
    "completion",
]


def test_help_names_every_command_and_no_other(nativert):
    out = nativert("--help").out
    listed = re.findall(r"^  ([a-z]+) +", out.partition("Commands:")[2], flags=re.MULTILINE)
    assert listed == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_the_global_options(nativert, command):
    result = nativert(command, "-h")
    assert result.code == 0
    for option in ("--root DIR", "--output", "--here"):
        assert option in result.out


@pytest.mark.parametrize(
    "args", [("--root", "/n", "--here", "ps"), ("ps", "--root", "/n", "--here")]
)
def test_global_options_stand_before_and_after_the_command(node, nativert, args):
    assert nativert(*args).code == 0
    assert node.opened == [(Path("/n"), True)]


def test_the_root_comes_from_the_environment_unless_an_option_says_otherwise(
    node, nativert, monkeypatch
):
    monkeypatch.setenv("NATIVERT_ROOT", "/variable")
    nativert("ps")
    nativert("--root", "/option", "ps")
    assert [root for root, _ in node.opened] == [Path("/variable"), Path("/option")]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "missing command (see nativert --help)"),
        (("pasue",), "no such command 'pasue'; did you mean pause? (see nativert --help)"),
        (("pause",), "pause: missing argument 'INSTANCE...' (see nativert pause --help)"),
        (("exec", "web", "--"), "exec: no program is given (see nativert exec --help)"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(nativert, args, message):
    result = nativert(*args)
    assert (result.code, result.out, result.err) == (2, "", f"nativert: {message}\n")


@pytest.mark.parametrize(
    "args", [("ps", "--bogus", "-o", "json"), ("-ojson", "nothing"), ("--output=json", "pause")]
)
def test_wrong_usage_is_json_where_json_was_asked_for(nativert, args):
    result = nativert(*args)
    assert result.code == 2
    assert json.loads(result.err)["error"]["code"] == "usage"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.EPERM, "unshare: Operation not permitted"), 7, "unshare: Operation not"),
        (OSError(errno.EACCES, "Permission denied", "/x"), 7, "/x: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 1, "/x: No space left"),
        (TimeoutError("freezing took too long"), 6, "freezing took too long"),
    ],
)
def test_errors_of_the_kernel_have_an_exit_code(node, nativert, error, code, message):
    node.add("web", "RUNNING")
    node.fail["pause"] = error
    result = nativert("pause", "web")
    assert result.code == code
    assert result.err.startswith(f"nativert: {message}")


def test_a_failed_clean_up_tells_every_cause(node, nativert):
    node.add("web", "CONFIGURED")
    causes = ExceptionGroup(
        "two", [OSError(5, "first", "/a"), ExceptionGroup("", [OSError(5, "b")])]
    )
    node.fail["clean"] = StepError("web", "clean", causes, code=Code.CLEAN)
    assert nativert("clean", "web").err == "nativert: web: clean: /a: first; b\n"


def test_text_of_others_cannot_move_the_terminal_or_make_lines(node, nativert):
    node.add("web", "CONFIGURED")
    node.fail["clean"] = OSError(5, "script said:\n\x1b[2Jline")
    assert nativert("clean", "web").err == "nativert: script said:; \\x1b[2Jline\n"


def test_a_fault_of_nativert_is_no_tidy_error(node, nativert):
    node.add("web", "RUNNING")
    node.fail["pause"] = ZeroDivisionError("fault")
    with pytest.raises(ZeroDivisionError):
        nativert("pause", "web")


def test_a_user_without_rights_is_told_so(nativert, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = nativert("ps", "-o", "json")
    assert result.code == 7
    assert json.loads(result.err)["error"] == {
        "code": "not-permitted",
        "message": "nativert needs root",
        "hint": "run it as root or with sudo",
    }


def test_what_needs_no_node_works_without_rights(nativert, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for command in ("states", "schema", "version"):
        assert nativert(command).code == 0


def test_ps_imports_nothing_heavy(tmp_path):
    """The start of every command is paid by every command."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from cli_fake_node import FakeNode
from nativert.cli import context, main
fake = FakeNode()
for n in range(9):
    fake.add(f"n{{n}}", "RUNNING")
before = set(sys.modules)
context.open_node = fake.open
try:
    main.main(["ps"])
except SystemExit as e:
    assert e.code == 0
heavy = "rich yaml pyroute2 psutil pyseccomp sqlite3 urllib.request asyncio".split()
print(*[name for name in heavy if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("RUNNING") == 9
    assert done.stderr.strip() == ""


def test_closed_standard_streams_are_not_taken_by_other_files(tmp_path):
    script = f"exec {sys.executable} -m nativert version >&- 2>&- <&-"
    done = subprocess.run(["sh", "-c", script], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_nativert(nativert, shell):
    result = nativert("completion", shell)
    assert result.code == 0
    assert "_NATIVERT_COMPLETE" in result.out


def _complete(nativert, monkeypatch, words: str) -> list[str]:
    monkeypatch.setenv("_NATIVERT_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    return nativert().out.split()


def test_completion_knows_commands_and_the_names_of_instances(node, nativert, monkeypatch):
    node.add("web", "RUNNING")
    node.add("database", "PAUSED")
    assert _complete(nativert, monkeypatch, "nativert pau") == ["plain,pause"]
    assert _complete(nativert, monkeypatch, "nativert pause w") == ["plain,web"]
    found = _complete(nativert, monkeypatch, "nativert --root /n stop web ")
    assert found == ["plain,web", "plain,database"]
    assert node.opened[-1] == (Path("/n"), False)


def test_completion_is_silent_where_there_is_no_node(nativert, monkeypatch):
    def refuse(**_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(context, "open_node", refuse)
    assert _complete(nativert, monkeypatch, "nativert pause w") == []


def test_the_documentation_names_every_command_and_exit_code():
    text = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    for command in COMMANDS:
        assert f"`{command} " in text or f"`{command}`" in text or f"`{command} INST" in text
    table = text.partition("## Exit codes")[2].partition("## Errors")[0]
    documented = {int(number) for number in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)}
    assert {code.exit_code for code in Code} - {126, 127} <= documented


def test_a_slip_in_the_root_is_no_node(nativert, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    there = tmp_path / "slip"
    for command in (["ps"], ["stop", "web"], ["gc"], ["rm", "-f", "web"]):
        result = nativert("--root", str(there), *command)
        assert result.code == 3
        assert f"no node keeps its state in {there}/var/lib/nativert" in result.err
    assert not there.exists()
