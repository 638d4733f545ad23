"""`backup` and `restore`: the state of a node in one file."""

from __future__ import annotations

import os
from pathlib import Path

import click

from nativert.cli import context, output
from nativert.cli.context import Session, pass_session
from nativert.errors import Code, NativertError

_FILE = click.Path(path_type=Path, dir_okay=False)


@context.command("backup")
@click.argument("file", type=_FILE, metavar="FILE")
@click.option("--data", is_flag=True, help="Also /data and the log of every instance.")
@pass_session
def backup(session: Session, file: Path, data: bool) -> None:
    """Save identity, instances, events and configuration of the node in FILE.

    It may be done at any time. With --data files are saved as they are found: stop an
    application first whose data must be whole.
    """
    session.only_here("backup")
    from nativert.runtime.backup import save
    from nativert.store.paths import Paths

    _need_root()
    saved = save(Paths(session.root), file.absolute(), data=data)
    if session.json:
        output.document(saved)
    else:
        with_data = " with their data" if data else ""
        count = f"{saved.instances} instances{with_data}, {output.size(saved.bytes)}"
        output.line(f"{saved.file}: {count}")


@context.command("restore")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--force", is_flag=True, help="Replace a node that is there and has nothing running.")
@pass_session
def restore(session: Session, file: Path, force: bool) -> None:
    """Make this node the one that `backup` has saved in FILE: all of it, or nothing.

    Its agent must not run. The instances are DEFINED afterwards; an agent starts those that
    were wanted running and have native.autostart.
    """
    session.only_here("restore")
    from nativert.runtime.restore import restore

    _need_root()
    restored = restore(session.root, file, force=force)
    if session.json:
        output.document(restored)
    else:
        output.line(f"node {restored.name}: {restored.instances} instances")
        for change in restored.renumbered:
            output.line(f"taken by others on this host, so changed: {change}")


def _need_root() -> None:
    if os.geteuid() != 0:
        raise NativertError(
            "nativert needs root", code=Code.PERMISSION, hint="run it as root or with sudo"
        )
