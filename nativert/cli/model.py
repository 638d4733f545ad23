"""What needs no node: the states, descriptors, their schema, the version."""

from __future__ import annotations

import platform
from typing import Literal

import click

from nativert import __version__
from nativert.cli import context, output
from nativert.cli.context import Session, pass_session
from nativert.errors import NativertError


@context.command("states")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "mermaid", "dot"]),
    default="text",
    show_default=True,
    help="Print a table, or the source of a diagram.",
)
@pass_session
def states(session: Session, form: Literal["text", "mermaid", "dot"]) -> None:
    """Print the state machine."""
    from nativert.fdu.states import TABLE, render

    if session.json:
        output.document(
            [
                {
                    "action": row.action.value,
                    "from": [state.value for state in row.sources],
                    "through": [state.value for state in row.through],
                    "to": row.to.value,
                }
                for row in TABLE
            ]
        )
    else:
        output.line(render(form).rstrip("\n"))


@context.command("validate")
@context.descriptor_argument
@pass_session
def validate(session: Session, descriptor: str) -> None:
    """Check a descriptor without touching the node."""
    accepted = context.read_descriptor(descriptor)
    if session.json:
        output.document({"valid": True, "id": accepted.id, "name": accepted.name})
    else:
        output.line(f"{descriptor}: valid")


@context.command("schema")
def schema() -> None:
    """Print the JSON Schema (2020-12) of descriptors."""
    from nativert.fdu import descriptor

    output.document(descriptor.schema())


@context.command("version")
@pass_session
def version(session: Session) -> None:
    """Print the versions of nativert, Python and the kernel, and of the agent if one serves."""
    versions: dict[str, str | None] = {
        "nativert": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "agent": _agent(session),
    }
    if session.json:
        output.document(versions)
    else:
        output.line("\n".join(f"{name} {number or 'none'}" for name, number in versions.items()))


def _agent(session: Session) -> str | None:
    try:
        client = session.agent()
        if client is None:
            return None
        with client:
            return str(client.version()["nativert"])
    except (NativertError, OSError):
        return None  # Not for this user, or just going.
