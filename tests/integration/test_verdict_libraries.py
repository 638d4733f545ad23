"""Programs that the loader refuses: which library or loader is missing, by name."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from nodes import MakeNode, ended, make_descriptor, make_document, start, until
from refusal import refused
from telling import Cli

from nativert.errors import Code
from nativert.runtime.node import Node
from nativert.runtime.views import End

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.apps]

LIBRARY = "int {name}(void) {{ return {body}; }}\n"


def compile_(target: Path, text: str, *options: str) -> Path:
    source = target.with_suffix(".c")
    source.write_text(text)
    subprocess.run(["gcc", "-o", target, source, *options], check=True)
    return target


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that needs libouter.so, which needs libinner.so, both beside it."""
    where = tmp_path_factory.mktemp("made")
    shared = ("-shared", "-fPIC", f"-L{where}", "-Wl,-rpath,$ORIGIN")
    compile_(where / "libinner.so", LIBRARY.format(name="inner", body="0"), *shared)
    outer = "int inner(void); int outer(void) { return inner(); }\n"
    compile_(where / "libouter.so", outer, *shared, "-linner")
    main = "int outer(void); int main(void) { return outer(); }\n"
    compile_(where / "app", main, f"-L{where}", "-louter", "-Wl,-rpath,$ORIGIN")
    nowhere = "-Wl,--dynamic-linker=/lib/nonesuch-ld.so"
    compile_(where / "unloadable", "int main(void) { return 0; }\n", nowhere)
    return where


@pytest.fixture
def shown(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    copy = tmp_path / "shown"
    subprocess.run(["cp", "-r", made, copy], check=True)
    copy.chmod(0o755)
    return copy


def with_(shown: Path, **fields: Any) -> dict[str, Any]:
    native = fields.pop("native", {}) | {"mounts": [{"source": str(shown), "target": "/opt"}]}
    return {"native": native, **fields}


def death(node: Node, make_node: MakeNode, **fields: Any) -> End:
    app = start(node, **fields)
    node.close()
    with make_node() as later:
        until(lambda: later.get(app).state == "CONFIGURED")
        return ended(later.get(app))


def test_with_its_libraries_it_runs(node: Node, make_node: MakeNode, shown: Path) -> None:
    assert death(node, make_node, **with_(shown, binary="/opt/app")).exit_code == 0


def test_a_missing_library(node: Node, make_node: MakeNode, shown: Path) -> None:
    (shown / "libouter.so").unlink()
    end = death(node, make_node, **with_(shown, binary="/opt/app"))
    assert (end.reason, end.fault, end.path) == ("exec-failed", "missing-library", "libouter.so")
    assert (end.exit_code, end.code) == (127, 127)
    assert end.message == (
        "exited with code 127: /opt/app needs the library libouter.so, which is nowhere in it"
    )


def test_a_foreground_run_prints_the_verdict(cli: Cli, shown: Path, tmp_path: Path) -> None:
    (shown / "libouter.so").unlink()
    document = tmp_path / "app.json"
    document.write_text(json.dumps(make_document(**with_(shown, binary="/opt/app"))))
    done = cli("run", str(document), "-o", "json")
    assert done.returncode == 127
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert error["code"] == "exec-failed"
    assert "/opt/app needs the library libouter.so" in error["message"]


def test_a_missing_library_of_a_library(node: Node, make_node: MakeNode, shown: Path) -> None:
    (shown / "libinner.so").unlink()
    end = death(node, make_node, **with_(shown, binary="/opt/app"))
    assert (end.fault, end.path) == ("missing-library", "libinner.so")
    assert "libinner.so (for /opt/libouter.so)" in end.message


def test_a_library_for_a_program_that_a_script_starts(
    node: Node, make_node: MakeNode, shown: Path
) -> None:
    (shown / "libouter.so").unlink()
    end = death(node, make_node, **with_(shown, shell="exec /opt/app"))
    assert (end.fault, end.path) == ("missing-library", "libouter.so")
    assert "/opt/app needs" in end.message


def test_what_a_program_says_of_another_library_is_not_believed(
    node: Node, make_node: MakeNode, shown: Path
) -> None:
    lie = (
        "/opt/app: error while loading shared libraries: libc.so.6: cannot open shared object file"
    )
    end = death(node, make_node, **with_(shown, shell=f"echo '{lie}' >&2; exit 127"))
    assert (end.reason, end.fault, end.message) == ("exited", None, "exited with code 127")


def test_a_shell_that_finds_no_command_has_come_up(node: Node, make_node: MakeNode) -> None:
    end = death(node, make_node, shell="nonesuch")
    assert (end.reason, end.message) == ("exited", "exited with code 127")


def test_a_library_path_of_the_environment_counts(
    node: Node, make_node: MakeNode, shown: Path
) -> None:
    (shown / "lib").mkdir()
    (shown / "libouter.so").rename(shown / "lib" / "libouter.so")
    # Found there, it looks for its own beside itself.
    env = {"env": {"LD_LIBRARY_PATH": "/opt/lib"}}
    end = death(node, make_node, **with_(shown, binary="/opt/app", native=env))
    assert (end.fault, end.path) == ("missing-library", "libinner.so")


def test_a_missing_loader(node: Node, shown: Path) -> None:
    ref = node.define(make_descriptor(**with_(shown, binary="/opt/unloadable"))).instance
    node.configure(ref)
    with refused(Code.NOT_EXECUTABLE, "/opt/unloadable", "/lib/nonesuch-ld.so is not there"):
        node.run(ref)
    assert ended(node.get(ref)).fault == "missing-interpreter"


def test_an_interpreter_that_env_does_not_find(
    node: Node, make_node: MakeNode, shown: Path
) -> None:
    script = shown / "script"
    script.write_text("#!/usr/bin/env nonesuch4\n")
    script.chmod(0o755)
    end = death(node, make_node, **with_(shown, binary="/opt/script"))
    assert (end.reason, end.fault, end.path) == ("exec-failed", "missing-interpreter", "nonesuch4")
    assert "its interpreter nonesuch4 is not in PATH, where env looks for it" in end.message
