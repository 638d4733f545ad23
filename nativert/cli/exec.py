"""`exec`: another program inside an instance."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import click

from nativert.cli import context, quantities
from nativert.cli.context import Session, pass_session
from nativert.cli.failures import after_start
from nativert.errors import Code, NativertError

if TYPE_CHECKING:
    from nativert.runtime.facade import Facade


@context.command(
    "exec",
    # What follows INSTANCE belongs to the program, its options too.
    context_settings={"allow_interspersed_args": False},
)
@context.instance_argument
@click.argument("argv", metavar="[--] CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-i", "--interactive", is_flag=True, help="Give it this stdin.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal of its own.")
@quantities.env_option
@pass_session
def exec_(
    session: Session,
    instance: str,
    argv: tuple[str, ...],
    interactive: bool,
    tty: bool,
    env: Sequence[tuple[str, str]],
) -> int:
    """Run a program inside an instance.

    It has the namespaces, cgroup and privileges of the application.

    The exit code is the program's; 126 and 127 if it cannot be executed or is not there.
    """
    # Behind INSTANCE the parser takes nothing away any more, `--` included.
    program = argv[1:] if argv[0] == "--" else argv
    if not program:
        raise click.UsageError("no program is given")
    if tty and interactive and not sys.stdin.isatty():
        raise NativertError("stdin is not a terminal", code=Code.USAGE, hint="leave out -t")
    with session.node() as node:
        if tty:
            return _on_a_terminal(node, instance, program, dict(env), interactive=interactive)
        return _on_our_streams(node, instance, program, dict(env), interactive=interactive)


def _on_our_streams(
    node: Facade, instance: str, argv: Sequence[str], env: dict[str, str], *, interactive: bool
) -> int:
    from nativert.cli.streams import streams

    with (
        open(os.devnull, "rb") as nothing,
        streams(0 if interactive else nothing.fileno()) as ours,
    ):
        running = node.exec(instance, argv, stdio=ours.stdio, env=env)
        ours.handed_over()
        try:
            with closing(running):
                return running.wait()
        except (NativertError, OSError) as e:
            raise after_start(e) from e


def _on_a_terminal(
    node: Facade, instance: str, argv: Sequence[str], env: dict[str, str], *, interactive: bool
) -> int:
    from nativert.cli.terminal import attend, raw, window_size

    running = node.exec(instance, argv, stdio=(0, 1, 2), tty=True, env=env)
    stdin = 0 if interactive else None
    try:
        with closing(running), raw(stdin):
            assert running.master is not None  # a session on a terminal has one
            running.resize(*window_size(1))
            return attend(running, running.master, stdin=stdin)
    except (NativertError, OSError) as e:
        raise after_start(e) from e
