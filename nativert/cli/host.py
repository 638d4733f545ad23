"""The host below the instances: gc and doctor."""

from __future__ import annotations

import click

from nativert.cli import context, output
from nativert.cli.context import Session, pass_session
from nativert.runtime.facade import Facade
from nativert.runtime.views import Check


@context.command("gc")
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@pass_session
def gc(session: Session, dry_run: bool) -> int:
    """Remove what no instance of this node owns any more."""
    with session.node() as node:
        leftovers = node.gc(dry_run=dry_run)
    if session.json:
        output.document(leftovers)
    elif leftovers:
        rows = [[item.kind, item.name, "yes" if item.removed else "no"] for item in leftovers]
        output.table(["KIND", "NAME", "REMOVED"], rows, numbers=())
    else:
        output.line("nothing is left over")
    kept = not dry_run and any(not item.removed for item in leftovers)
    return 1 if kept else 0


def _agent(node: Facade) -> Check:
    """Tell whether an agent has answered, or this command itself."""
    from nativert.agent.client import Client

    if isinstance(node, Client):
        served = node.version()
        detail = f"{served['nativert']}, process {served['pid']}; it has answered this"
        return Check(name="agent", ok=True, detail=detail, needed=False)
    return Check(
        name="agent",
        ok=False,
        detail="none serves; each command does its work itself",
        fix="start nativert agent for restart policies, health checks and the API",
        needed=False,
    )


@context.command("doctor")
@pass_session
def doctor(session: Session) -> int:
    """Tell what this host cannot enforce, and how to mend it.

    ✗ is something that nothing runs without, and makes the exit code 1; - is a feature that
    this host has not, refused where a descriptor asks for it.
    """
    with session.node(new=True) as node:
        checks = [*node.doctor(), _agent(node)]
    if session.json:
        output.document(checks)
    else:
        rows = [
            [
                "✓" if check.ok else "✗" if check.needed else "-",
                check.name,
                check.detail,
                check.fix or output.UNKNOWN,
            ]
            for check in checks
        ]
        output.table(["OK", "CHECK", "FOUND", "FIX"], rows, numbers=())
    return 0 if all(check.ok or not check.needed for check in checks) else 1
