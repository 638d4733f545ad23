"""`up` and `down`: several nodes on this host, to try what nodes do together."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nativert.cli import context, output
from nativert.cli.context import Session, pass_session
from nativert.cli.interrupts import Interrupted, delivered, interrupt

if TYPE_CHECKING:
    from nativert.fleet.up import Fleet

_MOST = 32
_LOOK_S = 0.2


@context.command("up")
@click.option(
    "--nodes",
    type=click.IntRange(1, _MOST),
    default=3,
    show_default=True,
    help="How many.",
)
@click.option("-d", "--detach", is_flag=True, help="Leave it up; nativert down removes it.")
@pass_session
def up(session: Session, nodes: int, detach: bool) -> None:
    """Make a fleet of nodes on this host, which find each other.

    Each has a network namespace and a root of its own, below --root DIR (default
    /var/lib/nativert-fleet), and an agent. In the foreground it stays until Ctrl-C or TERM, and is
    removed then, with every instance.
    """
    session.only_here("up")
    context.need_root()
    from nativert.fleet import plan
    from nativert.fleet.down import down
    from nativert.fleet.up import up

    root = _root(session)
    began = time.monotonic()
    with delivered(interrupt):
        fleet = up(root, nodes)
        try:
            _tell(session, fleet, time.monotonic() - began, detach=detach)
            while not detach and plan.there(root):
                for name in fleet.ended():
                    click.echo(f"nativert: {name}: its agent has ended", err=True)
                time.sleep(_LOOK_S)
            return
        except Interrupted:
            pass
        except BaseException:
            # Nobody has been told how to reach it.
            down(root)
            raise
    if plan.there(root):
        down(root)


@context.command("down")
@pass_session
def down(session: Session) -> None:
    """Remove the fleet below --root DIR: its agents, instances, namespaces and files.

    Also what an `up` that was killed has left.
    """
    session.only_here("down")
    context.need_root()
    from nativert.fleet.down import down

    root = _root(session)
    fleet = down(root)
    if session.json:
        output.document({"root": str(root), "nodes": [node.name for node in fleet.nodes]})
    else:
        output.line(f"{root}: {len(fleet.nodes)} nodes removed")


def _root(session: Session) -> Path:
    from nativert.fleet.plan import DEFAULT_ROOT

    return Path(os.path.abspath(session.root or DEFAULT_ROOT))


def _tell(session: Session, fleet: Fleet, took_s: float, *, detach: bool) -> None:
    root, nodes = fleet.root, fleet.plan.nodes
    if session.json:
        listed = [
            {"name": n.name, "root": n.directory, "address": n.address, "netns": n.netns}
            for n in nodes
        ]
        output.document({"root": str(root), "nodes": listed, "took_s": round(took_s, 3)})
        return
    output.line(f"{len(nodes)} nodes are up after {took_s:.1f} s")
    rows = [[n.name, n.address, n.netns, f"nativert --root {n.root} node ls"] for n in nodes]
    output.table(["NAME", "ADDRESS", "NETNS", "TALK TO IT"], rows, numbers=())
    end = f"nativert --root {root} down" if detach else "Ctrl-C"
    output.line(f"{end} removes everything")
