"""`plugin`: this node as the native runtime plugin of somebody else's fog05 agent."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from nativert.cli import context
from nativert.cli.context import Session, pass_session


@context.command("plugin")
@click.argument("manifest", type=click.Path(path_type=Path), metavar="MANIFEST")
@pass_session
def plugin(session: Session, manifest: Path) -> None:
    """Serve a fog05 agent as its plugin `native`, as MANIFEST (a JSON file) says.

    TERM and INT end it and leave the instances running.
    """
    session.only_here("plugin")
    from nativert.agent.plugin_process import serve

    serve(session.root, manifest, here=session.here)
    # Threads may still wait for the end of an application: the interpreter must not be taken
    # down under them.
    sys.stderr.flush()
    os._exit(0)
