"""`run`: one application in the foreground, from define to undefine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from queue import SimpleQueue
from typing import TYPE_CHECKING

import click
import msgspec

from nativert.cli import context, output, quantities
from nativert.cli.context import Session, pass_session
from nativert.cli.failures import AFTER_START, CommandError, Failure, after_start
from nativert.cli.interrupts import Interrupted, delivered, interrupt
from nativert.cli.progress import download_bar
from nativert.cli.watch import Event, Watch
from nativert.errors import Code, DescriptorError, NativertError, UnknownInstanceError
from nativert.fdu.descriptor import Descriptor
from nativert.fdu.native import Mount
from nativert.runtime.views import Instance

if TYPE_CHECKING:
    from nativert.runtime.facade import Facade
    from nativert.runtime.supervision.supervisor import Supervisor


@context.command("run")
@context.descriptor_argument
@quantities.env_option
@click.option("--name", metavar="N", help="Name the instance; the descriptor's name otherwise.")
@click.option("--keep", is_flag=True, help="Leave the instance configured after the end.")
@click.option("-d", "--detach", is_flag=True, help="Print the UUID and leave it running.")
@click.option("--bind-here", is_flag=True, help="Show this directory inside, read-only.")
@pass_session
def run(
    session: Session,
    descriptor: str,
    env: Sequence[tuple[str, str]],
    name: str | None,
    keep: bool,
    detach: bool,
    bind_here: bool,
) -> int:
    """Define, configure and start an application; stream its log.

    Ctrl-C, TERM or HUP stop it; a second Ctrl-C kills it. After its end the instance is cleaned
    and undefined. The exit code is the application's, 128+n when signal n ended it; with a
    restart policy that of the last attempt.
    """
    accepted = context.read_descriptor(descriptor)
    if bind_here:
        accepted = _with_this_directory(accepted)
    events: SimpleQueue[Event] = SimpleQueue()
    # From here to the end signals wait in the queue, except where one may interrupt.
    with delivered(events.put), session.node(new=True) as node:
        row = node.define(accepted, name=name)
        with _attended(node, row, accepted, detach=detach) as supervisor:
            try:
                _prepare(node, row, supervisor, events)
                with delivered(interrupt if detach else _one_waits(events)):
                    row = node.run(row.instance, env=dict(env))
            except BaseException as e:
                _discard(node, row, e)
                raise
            if detach:
                _print_started(session, row)
                return 0
            return _foreground(node, row, events, accepted, keep=keep)


def _attended(
    node: Facade, row: Instance, accepted: Descriptor, *, detach: bool
) -> AbstractContextManager[Supervisor | None]:
    if detach or not accepted.attended:
        return nullcontext()
    from nativert.runtime.supervision.foreground import attended

    return attended(node, row.instance)


def _with_this_directory(descriptor: Descriptor) -> Descriptor:
    here = os.getcwd()
    try:
        mounts = (*descriptor.native.mounts, Mount(source=here, target=here, read_only=True))
        native = msgspec.structs.replace(descriptor.native, mounts=mounts)
        return msgspec.structs.replace(descriptor, native=native)
    except DescriptorError as e:
        raise DescriptorError("--bind-here", e.reason) from None


def _prepare(
    node: Facade, row: Instance, supervisor: Supervisor | None, events: SimpleQueue[Event]
) -> None:
    """Do all that comes before the start, which may last and be interrupted."""
    with delivered(interrupt):
        if not events.empty():
            # It came while define had the queue only.
            raise Interrupted(_signal(events))
        with download_bar() as progress:
            node.configure(row.instance, progress=progress)
        if supervisor is not None:
            supervisor.before_start(row.instance)


def _one_waits(events: SimpleQueue[Event]) -> Callable[[int], None]:
    """Return what the first signal of a start is told to: it waits; a second one interrupts.

    The application may be running before the answer is here: then it is to be stopped like any
    other, and what it has written is to be shown.
    """

    def hear(number: int) -> None:
        if not events.empty():
            interrupt(number)
        events.put(number)

    return hear


def _signal(events: SimpleQueue[Event]) -> int:
    event = events.get()
    assert isinstance(event, int)
    return event


def _discard(node: Facade, row: Instance, error: BaseException) -> None:
    """Remove what a failed start has left; raises *error* together with what that meets."""
    try:
        node.remove(row.instance, force=True)
    except UnknownInstanceError:
        pass
    except (NativertError, OSError) as left:
        raise BaseExceptionGroup("run failed, and so did the removal", [error, left]) from None


def _print_started(session: Session, row: Instance) -> None:
    if session.json:
        output.document(row)
    else:
        output.line(row.instance)


def _foreground(
    node: Facade,
    row: Instance,
    events: SimpleQueue[Event],
    accepted: Descriptor,
    *,
    keep: bool,
) -> int:
    restarts = accepted.native.restart.policy != "never"
    watch = Watch(node, row.instance, events, restarts=restarts)
    try:
        ended = watch.until_the_end()
    except (NativertError, OSError) as e:
        error = after_start(e)
        if not keep:
            _discard(node, row, error)
        raise error from e
    except BaseException as e:
        if not keep:
            _discard(node, row, e)
        raise
    if not keep:
        try:
            node.remove(row.instance)
        except UnknownInstanceError:
            pass
        except (NativertError, OSError) as e:
            raise after_start(e) from e
    return _verdict(ended, asked=watch.stopping)


def _verdict(ended: Instance, *, asked: bool) -> int:
    end = ended.end
    if end is None:
        message = f"{ended.name}: ended, and nothing says how"
        raise CommandError(Failure(Code.FAILED.word, message, "", AFTER_START))
    if end.reason not in ("exited", "stopped") and not asked:
        raise CommandError(Failure(end.reason, f"{ended.name}: {end.message}", "", end.code))
    return end.code
