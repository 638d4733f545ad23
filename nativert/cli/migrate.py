"""`migrate`: an instance goes to another node, or stays."""

from __future__ import annotations

import click

from nativert.cli import context, output
from nativert.cli.context import Session, pass_session


@context.command("migrate")
@context.instance_argument
@click.argument("node")
@pass_session
def migrate(session: Session, instance: str, node: str) -> None:
    """Move a running instance to another node, by its id or name.

    It is stopped here, its data travel, and it is started there. Until all that is there it can
    still stay here, and does when anything fails.
    """
    with session.node() as here:
        told = here.migrate(instance, node)
    if session.json:
        output.document(told)
        return
    addresses = ", ".join(f"{name} {address}" for name, address in told["addresses"].items())
    at = f" at {addresses}" if addresses else ""
    output.line(f"{told['name']} {told['state']} on {told['node']}{at}")
