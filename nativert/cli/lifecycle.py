"""The operations on instances that are defined: every edge of the state table that has a verb."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from nativert.cli import context, output, quantities
from nativert.cli.context import Session, for_each, pass_session
from nativert.cli.progress import download_bar
from nativert.errors import Code, NativertError
from nativert.runtime.views import Instance

if TYPE_CHECKING:
    from nativert.fdu.descriptor import Descriptor
    from nativert.runtime.facade import Facade


@context.command("define")
@context.descriptor_argument
@click.option("--name", metavar="N", help="Name the instance; the descriptor's name otherwise.")
@click.option(
    "--replace", is_flag=True, help="Where one of this name is DEFINED, change its descriptor."
)
@pass_session
def define(session: Session, descriptor: str, name: str | None, replace: bool) -> None:
    """Make an instance of a descriptor; prints its UUID.

    With --replace one that is there has its UUID, address, /data and log from before.
    """
    accepted = context.read_descriptor(descriptor)
    with session.node(new=True) as node:
        row = _replaced(node, name or accepted.name, accepted) if replace else None
        if row is None:
            row = node.define(accepted, name=name)
    if session.json:
        output.document(row)
    else:
        output.line(row.instance)


def _replaced(node: Facade, name: str, descriptor: Descriptor) -> Instance | None:
    for row in node.list():
        if row.name == name:
            return node.redefine(row.instance, descriptor)
    return None


@context.command("configure")
@context.instances_argument
@pass_session
def configure(session: Session, instances: Sequence[str]) -> None:
    """Create image, cgroups, namespaces, file system, network."""

    def fetch_and_make(node: Facade, ref: str) -> Instance:
        with download_bar() as progress:
            return node.configure(ref, progress=progress)

    for_each(session, instances, fetch_and_make)


@context.command("start")
@context.instances_argument
@quantities.env_option
@pass_session
def start(session: Session, instances: Sequence[str], env: Sequence[tuple[str, str]]) -> None:
    """Start the application of a configured instance."""
    variables = dict(env)
    for_each(session, instances, lambda node, ref: node.run(ref, env=variables))


@context.command("restart")
@context.instances_argument
@pass_session
def restart(session: Session, instances: Sequence[str]) -> None:
    """Stop and start the application; the namespaces stay."""
    for_each(session, instances, lambda node, ref: node.restart(ref))


@context.command("stop")
@context.instances_argument
@pass_session
def stop(session: Session, instances: Sequence[str]) -> None:
    """Send the stop signal; after the grace period, kill."""
    for_each(session, instances, lambda node, ref: node.stop(ref))


@context.command("kill")
@context.instances_argument
@click.option(
    "-s",
    "--signal",
    "signal_number",
    type=quantities.SIGNAL,
    default="SIGKILL",
    show_default=True,
    help="What to send.",
)
@pass_session
def kill(session: Session, instances: Sequence[str], signal_number: int) -> None:
    """Send a signal to the application."""

    def send(node: Facade, ref: str) -> Instance:
        node.kill(ref, signal_number)
        return node.get(ref)

    for_each(session, instances, send)


@context.command("wait")
@context.instances_argument
@click.option("--timeout", type=quantities.DURATION, help="Give up after this time (exit code 6).")
@pass_session
def wait(session: Session, instances: Sequence[str], timeout: float | None) -> None:
    """Wait for the end of the application; prints its exit code."""
    left = timeout

    def ended(node: Facade, ref: str) -> Instance:
        nonlocal left
        began = time.monotonic()
        try:
            row = node.wait(ref, timeout_s=left)
        finally:
            # One time for all of them together.
            if left is not None:
                left = max(0.0, left - (time.monotonic() - began))
        if row.end is None:
            raise NativertError(f"{row.name}: has not been started", code=Code.TRANSITION)
        return row

    for_each(
        session,
        instances,
        ended,
        shown=lambda row: str(row.end.code) if row.end else output.UNKNOWN,
    )


@context.command("pause")
@context.instances_argument
@pass_session
def pause(session: Session, instances: Sequence[str]) -> None:
    """Freeze a running application."""
    for_each(session, instances, lambda node, ref: node.pause(ref))


@context.command("resume")
@context.instances_argument
@pass_session
def resume(session: Session, instances: Sequence[str]) -> None:
    """Thaw a paused application."""
    for_each(session, instances, lambda node, ref: node.resume(ref))


@context.command("clean")
@context.instances_argument
@pass_session
def clean(session: Session, instances: Sequence[str]) -> None:
    """Remove all that configure has made."""
    for_each(session, instances, lambda node, ref: node.clean(ref))


@context.command("undefine")
@context.instances_argument
@pass_session
def undefine(session: Session, instances: Sequence[str]) -> None:
    """Forget a defined instance, its /data and its log."""

    def forget(node: Facade, ref: str) -> Instance:
        row = node.get(ref)
        node.undefine(row.instance)
        return _gone(row)

    for_each(session, instances, forget)


@context.command("rm")
@context.instances_argument
@click.option("-f", "--force", is_flag=True, help="Kill what runs, or is paused, at once.")
@pass_session
def rm(session: Session, instances: Sequence[str], force: bool) -> None:
    """Stop, clean and forget an instance: its /data and its log go too.

    What runs gets its stop signal and its grace, as with stop. What is paused is refused without
    --force.
    """

    def remove(node: Facade, ref: str) -> Instance:
        row = node.get(ref)
        node.remove(row.instance, force=force)
        return _gone(row)

    for_each(session, instances, remove)


def _gone(row: Instance) -> Instance:
    return msgspec.structs.replace(
        row,
        state="UNDEFINED",
        pid=None,
        cpu_ratio=None,
        memory_bytes=None,
        pids=None,
        uptime_s=None,
    )
