"""Compiling init: when it is made anew, and what is left when it cannot be."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/build_init.py"


@pytest.fixture
def build_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, at work on a copy of the sources."""
    spec = importlib.util.spec_from_file_location("build_init", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sources = tmp_path / "init"
    sources.mkdir()
    for path in module.SOURCES.glob("*.[ch]"):
        shutil.copy(path, sources)
    monkeypatch.setattr(module, "SOURCES", sources)
    monkeypatch.setattr(module, "PROGRAM", sources / "nativert-init")
    return module


def test_it_is_made_once_and_again_when_a_source_changes(build_init: ModuleType) -> None:
    assert build_init.build()
    assert not build_init.build()
    made = build_init.PROGRAM.stat()
    assert made.st_mode & 0o111
    with (build_init.SOURCES / "loop.c").open("a") as source:
        source.write("/* changed */\n")
    assert build_init.build()
    # By a rename: what runs keeps the program that it was started from.
    assert build_init.PROGRAM.stat().st_ino != made.st_ino


def test_it_needs_no_library_of_the_instance(build_init: ModuleType) -> None:
    build_init.build()
    found = subprocess.run(
        ["readelf", "-lW", build_init.PROGRAM], capture_output=True, text=True, check=True
    )
    assert "INTERP" not in found.stdout
    assert "DYNAMIC" not in found.stdout


def test_without_a_configuration_it_ends_at_once(build_init: ModuleType) -> None:
    build_init.build()
    done = subprocess.run([build_init.PROGRAM], check=False, timeout=30, env={})
    assert done.returncode == 2


def test_what_does_not_compile_leaves_what_was_there(
    build_init: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    build_init.build()
    before = build_init.PROGRAM.read_bytes()
    (build_init.SOURCES / "loop.c").write_text("no C\n")
    with pytest.raises(SystemExit, match="failed"):
        build_init.build()
    assert "loop.c" in capfd.readouterr().err
    assert build_init.PROGRAM.read_bytes() == before
    assert [name for name in os.listdir(build_init.SOURCES) if name.startswith(".")] == []


def test_a_missing_compiler_is_told(
    build_init: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(SystemExit, match="install gcc"):
        build_init.build()
