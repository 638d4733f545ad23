"""What a node gets from the operator's directory, put where its agent looks for it."""

from __future__ import annotations

import os
import tomllib
from contextlib import ExitStack
from pathlib import Path

from nativert.errors import Code, NativertError


def check(etc: Path, *, force: bool) -> None:
    """Refuse where there is a configuration of Zenoh already; NativertError NAME_TAKEN."""
    config = etc / "config.toml"
    try:
        if "zenoh" in tomllib.loads(config.read_text()):
            raise NativertError(
                f"{config}: has a table zenoh",
                code=Code.NAME_TAKEN,
                hint="take it out: what it says goes into conf.d/zenoh.toml",
            )
    except FileNotFoundError:
        pass
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise NativertError(f"{config}: {e}", code=Code.DESCRIPTOR) from None
    for present in (etc / "conf.d/zenoh.toml", etc / "zenoh"):
        if present.exists() and not force:
            raise NativertError(
                f"{present}: is there already",
                code=Code.NAME_TAKEN,
                hint="--force puts the new one in its place",
            )


def install(source: Path, etc: Path) -> list[Path]:
    """Copy the files of a node's directory below *etc*, all or none; return where they are."""
    found = sorted(path for path in source.rglob("*") if path.is_file())
    goals = [etc / path.relative_to(source) for path in found]
    with ExitStack() as undo:
        for path, goal in zip(found, goals, strict=True):
            goal.parent.mkdir(mode=0o755 if goal.parent == etc else 0o700, parents=True,
                              exist_ok=True)  # fmt: skip
            fresh = _fresh(goal)
            undo.callback(fresh.unlink, missing_ok=True)
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(path.read_bytes())
        for goal in goals:
            _fresh(goal).replace(goal)
    return goals


def _fresh(goal: Path) -> Path:
    return goal.with_name(f".{goal.name}.new")
