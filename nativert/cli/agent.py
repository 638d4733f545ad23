"""`agent`: the node as a service in the foreground."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from nativert.cli import context
from nativert.cli.context import Session, pass_session


@context.command("agent")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read this file instead of etc/nativert/config.toml.",
)
@click.option("--stop-all", is_flag=True, help="End the instances too when the agent ends.")
@click.option(
    "--insecure",
    is_flag=True,
    help="Listen for Zenoh without TLS on the network too, and let everybody in.",
)
@pass_session
def agent(session: Session, config: Path | None, stop_all: bool, insecure: bool) -> None:
    """Serve this node: its API, its metrics, what needs somebody alive.

    TERM and INT end it and leave the instances running; HUP reads the configuration again.
    """
    session.only_here("agent")
    from nativert.agent.service import serve
    from nativert.runtime.place import enter

    here = enter(session.root) or session.here
    serve(session.root, here=here, config=config, stop_all=stop_all, insecure=insecure)
    # Threads may still wait for the end of an application: the interpreter must not be taken
    # down under them.
    sys.stderr.flush()
    os._exit(0)
