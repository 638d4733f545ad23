"""`logs`: what an application has written."""

from __future__ import annotations

import click

from nativert.cli import context, output
from nativert.cli.context import Session, pass_session
from nativert.cli.relay import LogObject, Relay


@context.command("logs")
@context.instance_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the application has ended.")
@click.option(
    "-n", "--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines."
)
@click.option(
    "-t", "--timestamps", is_flag=True, help="Begin each line with the time it was written."
)
@pass_session
def logs(session: Session, instance: str, follow: bool, tail: int | None, timestamps: bool) -> None:
    """Print what the application has written.

    Its stderr goes to stderr. With -o json: one object per line, on stdout.
    """
    relay = Relay(timestamps=timestamps)
    with session.node() as node:
        for line in node.logs(instance, follow=follow, tail=tail):
            if session.json:
                output.json_line(LogObject.of(line))
            else:
                relay.write(line)
