"""What all commands share: the global options, the way to the node, arguments and decorators."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from nativert.cli import output
from nativert.errors import Code, NativertError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from nativert.agent.client import Client
    from nativert.fdu.descriptor import Descriptor
    from nativert.runtime.facade import Facade
    from nativert.runtime.views import Instance

# A descriptor is a page of text; this only keeps an endless file out of memory.
_DESCRIPTOR_READ_LIMIT = 16 << 20


class Session(msgspec.Struct):
    """The global options of one command."""

    root: Path | None = None
    json: bool = False
    here: bool = False
    no_agent: bool = False
    # Another node that is to do everything, by its id or name.
    on: str | None = None

    def node(self, *, new: bool = False) -> Facade:
        """Open the node of these options: its agent where one serves, else the node itself.

        Only with *new* is one made in a directory that was named; NativertError(NOT_FOUND) else.
        """
        if self.on is not None:
            return self.needed_agent("another node")
        return self.agent() or self._embedded(new=new)

    def needed_agent(self, what: str) -> Client:
        """Reach the agent that *what* is asked through; NativertError NO_AGENT without one."""
        agent = self.agent()
        if agent is None:
            raise NativertError(
                f"{what} can only be reached through an agent, and none serves this node",
                code=Code.NO_AGENT,
                hint="start nativert agent, with a [zenoh] section in its configuration",
            )
        return agent

    def only_here(self, command: str) -> None:
        """Refuse --on for a command that works on files of this node."""
        if self.on is not None:
            raise click.UsageError(f"{command} works on this node only: leave out --on")

    def agent(self) -> Client | None:
        """Reach the agent of the node; None if none serves, or it is not wanted."""
        if self.no_agent or os.environ.get("NATIVERT_AGENT") == "no":
            return None
        from nativert.store.paths import Paths

        path = Paths(self.root).api_socket
        if not path.is_socket():
            return None
        from nativert.agent.client import Client

        try:
            return Client(path, direct=self._embedded, node=self.on)
        except (FileNotFoundError, ConnectionRefusedError):
            return None  # One that was killed has left its socket.
        except PermissionError:
            raise _needs_root() from None

    def _embedded(self, *, new: bool = True) -> Facade:
        return open_node(root=self.root, here=self.here, new=new)


def open_node(*, root: Path | None, here: bool, new: bool = True) -> Facade:
    """Open the node under *root*; NativertError: not permitted unless root.

    Without *new* also NOT_FOUND where *root* names no node: a slip in it must not pass for a node
    that has no instances, nor make one. The host's own is one from the first look on.
    """
    need_root()
    from nativert.store.paths import Paths, no_node

    paths = Paths(root)
    if not new and paths.root is not None and not os.path.lexists(paths.lib):
        raise no_node(paths)
    from nativert.runtime.node import Node
    from nativert.runtime.place import enter

    return Node(root=root, here=enter(root) or here)


def need_root() -> None:
    """Raise NativertError (not permitted) unless root."""
    if os.geteuid() != 0:
        raise _needs_root()


def _needs_root() -> NativertError:
    return NativertError(
        "nativert needs root", code=Code.PERMISSION, hint="run it as root or with sudo"
    )


pass_session = click.make_pass_decorator(Session)


def global_options(*, root_variable: str | None = None) -> list[click.Option]:
    """Make the options that may stand before and after the command's name."""
    # Eager: the form of a usage error is known before the error is found.
    common: dict[str, Any] = {"expose_value": False, "is_eager": True}
    return [
        click.Option(
            ["--root"],
            type=click.Path(path_type=Path),
            metavar="DIR",
            envvar=root_variable,
            callback=_set("root"),
            help="Keep the node's files under DIR (NATIVERT_ROOT).",
            **common,
        ),
        click.Option(
            ["-o", "--output"],
            type=click.Choice(["table", "json"]),
            callback=_set("output"),
            help="Print for people or for programs.",
            **common,
        ),
        click.Option(
            ["--here"],
            is_flag=True,
            default=None,
            callback=_set("here"),
            help="Work in this mount and network namespace, PID 1's or not (NATIVERT_HERE=1).",
            **common,
        ),
        click.Option(
            ["--no-agent"],
            is_flag=True,
            default=None,
            callback=_set("no_agent"),
            help="Do it in this process also where an agent serves (NATIVERT_AGENT=no).",
            **common,
        ),
        click.Option(
            ["--on"],
            metavar="NODE",
            callback=_set("on"),
            help="Have another node do it, by its id or name; this node's agent asks it.",
            **common,
        ),
    ]


def _set(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _parameter: click.Parameter, value: Any) -> None:
        if value is None:
            return
        session = ctx.ensure_object(Session)
        if name == "output":
            session.json = value == "json"
        else:
            setattr(session, name, value)

    return callback


def command(name: str, **attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command of nativert, with the global options of its own."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        made = click.command(name, cls=click.Command, **attributes)(function)
        made.params.extend(global_options())
        return made

    return decorate


def _complete_instance(
    ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    try:
        with ctx.ensure_object(Session).node() as node:
            rows = node.list()
    except (NativertError, OSError):
        # Nobody asked for a report between two key strokes.
        return []
    return [CompletionItem(r.name, help=r.state) for r in rows if r.name.startswith(incomplete)]


instance_argument = click.argument("instance", shell_complete=_complete_instance)
instances_argument = click.argument(
    "instances", metavar="INSTANCE...", nargs=-1, required=True, shell_complete=_complete_instance
)
optional_instances_argument = click.argument(
    "instances", metavar="[INSTANCE...]", nargs=-1, shell_complete=_complete_instance
)
descriptor_argument = click.argument(
    "descriptor", type=click.Path(allow_dash=True), metavar="DESCRIPTOR"
)


def read_descriptor(path: str) -> Descriptor:
    """Decode the descriptor in *path* ("-" is stdin); DescriptorError, OSError."""
    from nativert.fdu.descriptor import decode

    if path == "-":
        return decode(sys.stdin.buffer.read(_DESCRIPTOR_READ_LIMIT), source="<stdin>")
    try:
        with open(path, "rb") as file:
            return decode(file.read(_DESCRIPTOR_READ_LIMIT), source=path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
        raise NativertError(f"{path}: {e.strerror}", code=Code.DESCRIPTOR) from None


def _state(row: Instance) -> str:
    return f"{row.name} {row.state}"


def show(session: Session, row: Instance) -> None:
    """Print where an operation has left one instance."""
    if session.json:
        output.document(row)
    else:
        output.line(_state(row))


def for_each(
    session: Session,
    refs: Sequence[str],
    operation: Callable[[Facade, str], Instance],
    *,
    shown: Callable[[Instance], str] = _state,
) -> None:
    """Do *operation* for every instance, also after one has failed; raises what failed together."""
    rows: list[Instance] = []
    errors: list[Exception] = []
    closed: output.StdoutClosedError | None = None
    with session.node() as node:
        for ref in refs:
            try:
                row = operation(node, ref)
            except (NativertError, OSError) as e:
                errors.append(e)
                continue
            rows.append(row)
            if not session.json:
                try:
                    output.line(shown(row))
                except output.StdoutClosedError as e:
                    closed = e
    if session.json:
        output.document(rows)
    if errors:
        raise ExceptionGroup("some instances failed", errors)
    if closed is not None:
        raise closed
