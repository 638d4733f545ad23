"""The command `nativert`. Only here do errors become text on stderr and exit codes."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence

import click
import msgspec

from nativert import __version__
from nativert.cli import context
from nativert.cli.context import Session
from nativert.cli.failures import Failure, failures
from nativert.cli.interrupts import Interrupted, delivered, interrupt
from nativert.cli.output import StdoutClosedError, printable

# Name, module, attribute; in the order of help. A module is imported with its first command.
_COMMANDS = {
    "run": "run:run",
    "define": "lifecycle:define",
    "configure": "lifecycle:configure",
    "start": "lifecycle:start",
    "restart": "lifecycle:restart",
    "stop": "lifecycle:stop",
    "kill": "lifecycle:kill",
    "wait": "lifecycle:wait",
    "pause": "lifecycle:pause",
    "resume": "lifecycle:resume",
    "scale": "scale:scale",
    "migrate": "migrate:migrate",
    "clean": "lifecycle:clean",
    "undefine": "lifecycle:undefine",
    "rm": "lifecycle:rm",
    "ps": "query:ps",
    "inspect": "query:inspect",
    "logs": "logs:logs",
    "exec": "exec:exec_",
    "ls": "files:ls",
    "get": "files:get",
    "put": "files:put",
    "stats": "query:stats",
    "top": "top:top",
    "events": "events:events",
    "states": "model:states",
    "validate": "model:validate",
    "schema": "model:schema",
    "node": "node:node",
    "up": "fleet:up",
    "down": "fleet:down",
    "agent": "agent:agent",
    "plugin": "plugin:plugin",
    "zenoh": "zenoh:zenoh",
    "gc": "host:gc",
    "doctor": "host:doctor",
    "backup": "backup:backup",
    "restore": "backup:restore",
    "version": "model:version",
    "completion": "completion:completion",
}
# What other runtimes and service managers call it.
_ELSEWHERE = {
    "cp": "get or put",
    "create": "define",
    "delete": "rm",
    "freeze": "pause",
    "list": "ps",
    "log": "logs",
    "remove": "rm",
    "status": "ps or inspect",
    "thaw": "resume",
    "unpause": "resume",
    "update": "scale or define --replace",
}
# As a program that SIGPIPE has ended.
_STDOUT_CLOSED = 128 + signal.SIGPIPE


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(f"nativert.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # click's own refusal would look for similar names among commands already loaded.
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            similar = get_close_matches(name, _COMMANDS, n=1, cutoff=0.7)
            command = _ELSEWHERE.get(name) or next(iter(similar), "")
            meant = f"; did you mean {command}?" if command else ""
            raise click.UsageError(f"no such command {name!r}{meant}", ctx=ctx)
        return super().resolve_command(ctx, args)


@click.group(
    "nativert",
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
    subcommand_metavar="COMMAND [ARGS]...",
)
def cli() -> None:
    """Run native applications in namespaces and cgroups of their own, as FDUs."""


cli = click.version_option(__version__, prog_name="nativert", message="%(prog)s %(version)s")(cli)
cli.params.extend(context.global_options(root_variable="NATIVERT_ROOT"))


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit."""
    _fill_standard_streams()
    raise SystemExit(_exit_code(list(sys.argv[1:] if argv is None else argv)))


def _fill_standard_streams() -> None:
    # A caller may have closed them (>&-). The next file opened would take the number, and
    # what is meant for stdout would go into it.
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A locale without ✓ must not turn an answer into a traceback.
            stream.reconfigure(errors="backslashreplace")


def _exit_code(args: list[str]) -> int:
    session = Session()
    try:
        with delivered(interrupt):
            result = cli.main(args, prog_name="nativert", standalone_mode=False, obj=session)
        return result if isinstance(result, int) else 0
    except StdoutClosedError:
        return _STDOUT_CLOSED
    except (Exception, Interrupted, BaseExceptionGroup) as e:  # noqa: BLE001 (faults come out)
        told = failures(e)
        # The parser may have stopped at a wrong option before it came to -o.
        as_json = session.json or (isinstance(e, click.UsageError) and _wants_json(args))
        for failure in told:
            _tell(failure, as_json=as_json)
        return max(failure.exit_code for failure in told)


def _wants_json(args: list[str]) -> bool:
    if "--" in args:
        args = args[: args.index("--")]
    pairs = zip(args, [*args[1:], ""], strict=False)
    return any(
        option in ("-ojson", "--output=json") or (option in ("-o", "--output") and value == "json")
        for option, value in pairs
    )


def _tell(failure: Failure, *, as_json: bool) -> None:
    if as_json:
        error = {"code": failure.code, "message": failure.message, "hint": failure.hint}
        text = msgspec.json.encode({"error": error}).decode()
    else:
        message = "; ".join(line.strip() for line in failure.message.splitlines() if line.strip())
        hint = f" ({failure.hint})" if failure.hint else ""
        text = printable(f"nativert: {message}{hint}")
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        # Nobody listens; the exit code still tells.
        pass
