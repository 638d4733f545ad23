"""`node ls`: this node and the others that its agent has seen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from nativert.cli import context, output
from nativert.cli.context import Session, pass_session

if TYPE_CHECKING:
    from nativert.agent.api.messages import KnownNode


@click.group("node", no_args_is_help=False)
def node() -> None:
    """Look at the nodes that this one's agent knows."""


node.params.extend(context.global_options())


@context.command("ls")
@pass_session
def ls(session: Session) -> None:
    """List this node and every other that its agent has seen since it began.

    One that is gone stays in the list, with the time since then.
    """
    with session.needed_agent("other nodes") as agent:
        rows = agent.nodes()
    if session.json:
        output.document(rows)
        return
    header = ["NAME", "NODE", "ALIVE", "INSTANCES", "SEEN", "ADDRESSES"]
    output.table(header, [_cells(row) for row in rows], numbers=["INSTANCES", "SEEN"])


node.add_command(ls)


def _cells(row: KnownNode) -> list[str]:
    seen = "now" if row.alive else f"{output.duration(time.time() - row.last_seen)} ago"
    return [
        (row.name or output.UNKNOWN) + (" *" if row.own else ""),
        row.uuid,
        "yes" if row.alive else "no",
        output.count(row.instances),
        seen,
        " ".join(row.addresses) or output.UNKNOWN,
    ]
