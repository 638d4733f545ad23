"""`events`: what has happened on this node, and what happens."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from nativert.cli import context, output
from nativert.cli.context import Session, pass_session
from nativert.runtime.views import Event

_PAGE = 500
_WAIT_S = 20.0


@context.command("events")
@context.optional_instances_argument
@click.option("-f", "--follow", is_flag=True, help="What happens from now on, until interrupted.")
@click.option(
    "--after",
    type=click.IntRange(min=0),
    metavar="SEQ",
    help="Only events with numbers above this one; with -f those that were too.",
)
@pass_session
def events(session: Session, instances: Sequence[str], follow: bool, after: int | None) -> None:
    """Print what has happened, the oldest first.

    Of all instances, or of those named; one that is gone too. With -o json: one object per line.
    Its `seq` is what --after takes.
    """
    with session.node() as node:
        if after is None:
            after = node.latest_event() if follow else 0
        while True:
            page = node.events(after, limit=_PAGE)
            if not page and follow:
                page = node.wait_events(after, _WAIT_S, limit=_PAGE)
            for event in page:
                if not instances or _is_of(event, instances):
                    _print(session, event)
                after = event.seq
            if not page and not follow:
                return


def _is_of(event: Event, instances: Sequence[str]) -> bool:
    return any(
        ref == event.name or (ref and event.instance.startswith(ref.lower())) for ref in instances
    )


def _print(session: Session, event: Event) -> None:
    if session.json:
        output.json_line(event)
        return
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time))
    told = event.data.get("message")
    if not isinstance(told, str):
        told = " ".join(f"{k}={_short(v)}" for k, v in event.data.items() if v is not None)
    who = event.name or event.instance or output.UNKNOWN
    output.line(output.printable(f"{event.seq}  {at}  {who}  {event.kind}  {told}".rstrip()))


def _short(value: object) -> object:
    # Of an end or limits: its sentence, or what is set.
    if not isinstance(value, dict):
        return value
    set_ = ",".join(f"{k}:{v}" for k, v in value.items() if v not in (None, []))
    return f"({value.get('message', set_)})"
