"""`zenoh init`: keys and configuration with which nodes and clients let each other in."""

from __future__ import annotations

import ipaddress
import shutil
import socket
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from nativert.cli import context, output
from nativert.cli.context import Session, pass_session

_DIRECTORY = click.Path(path_type=Path, file_okay=False)
_PORT = 7447
_DAYS = 3650


@click.group(
    "zenoh", no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]}
)
def zenoh() -> None:
    """Who may talk to nodes over Zenoh."""


@context.command("init")
@click.option(
    "--dir",
    "directory",
    type=_DIRECTORY,
    metavar="DIR",
    help="Make the authority in DIR instead of etc/nativert/zenoh-authority.",
)
@click.option("--ca", type=_DIRECTORY, metavar="DIR", help="Make more with the authority in DIR.")
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="NAME[=ADDRESS,...]",
    help="A node, and by which addresses or names others reach it.",
)
@click.option(
    "--client",
    "clients",
    multiple=True,
    metavar="NAME",
    help="A client of fog05; a new authority makes `client` unless told.",
)
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="NAME",
    help="A plugin that is a process of its own.",
)
@click.option(
    "--password", is_flag=True, help="Clients and plugins log in, and have no certificates."
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=_PORT,
    show_default=True,
    help="Where nodes listen.",
)
@click.option(
    "--days",
    type=click.IntRange(1, _DAYS * 2 - 1),
    default=_DAYS,
    show_default=True,
    help="How long certificates are good for.",
)
@click.option("--force", is_flag=True, help="Replace what is there.")
@pass_session
def init(
    session: Session,
    /,
    directory: Path | None,
    ca: Path | None,
    nodes: tuple[str, ...],
    clients: tuple[str, ...],
    plugins: tuple[str, ...],
    **options: Any,
) -> None:
    """Make an authority, and what nodes and clients need to let each other in, and nobody else.

    Without --node, --client and --plugin it is for this host, and put into etc/nativert; what is
    for others is in DIR, to be copied there. The authority's key, DIR/ca.key, is for you alone.
    """
    session.only_here("zenoh init")
    from nativert.agent.authority import folder, installation
    from nativert.store.paths import Paths

    _refuse_beside_ca(ca, directory)
    etc = Paths(session.root).etc
    here = not (nodes or clients or plugins)
    own = socket.gethostname()
    given = {own: _addresses()} if here else dict(_node(one) for one in nodes)
    wanted = folder.Wanted(
        nodes=given,
        clients=clients or (() if ca else ("client",)),
        plugins=plugins,
        days=options["days"],
    )
    force = options["force"]
    if here:
        installation.check(etc, force=force)
    if ca is not None:
        directory = ca.absolute()
        made = folder.extend(directory, wanted, force=force)
    else:
        directory = (directory or etc / "zenoh-authority").absolute()
        made = folder.create(
            directory, wanted, port=options["port"], password=options["password"], force=force
        )
    try:
        installed = installation.install(directory / "nodes" / own, etc) if here else []
    except OSError:
        if ca is None:
            shutil.rmtree(directory)
        raise
    if session.json:
        told = {"made": made, "installed": installed}
        output.document(
            {"authority": str(directory), **{k: [str(x) for x in v] for k, v in told.items()}}
        )
        return
    output.line(f"authority {directory}: keep {directory / 'ca.key'} to yourself")
    for path in made:
        kind = path.parent.name.removesuffix("s")
        goes = "is installed here" if here and kind == "node" else _advice(kind, path)
        output.line(f"{kind} {path.name}: {goes}")


def _advice(kind: str, path: Path) -> str:
    if kind == "node":
        return f"copy {path}/. to its /etc/nativert, and restart its agent"
    return f"copy {path} to it; {path.name}/credentials.toml is what it shows"


def _refuse_beside_ca(ca: Path | None, directory: Path | None) -> None:
    if ca is None:
        return
    source = click.get_current_context().get_parameter_source
    given = [x for x in ("port", "password") if source(x) is ParameterSource.COMMANDLINE]
    if given or directory:
        raise click.UsageError("--ca goes with none of --dir, --port, --password")


def _node(text: str) -> tuple[str, list[str]]:
    name, mark, addresses = text.partition("=")
    return name, addresses.split(",") if mark else []


def _addresses() -> list[str]:
    """Return the addresses by which others may reach this host, its name first."""
    import psutil

    found = [socket.gethostname()]
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family in (socket.AF_INET, socket.AF_INET6):
                ip = ipaddress.ip_address(one.address.partition("%")[0])
                if not (ip.is_loopback or ip.is_link_local):
                    found.append(str(ip))
    return found


zenoh.params.extend(context.global_options())
zenoh.add_command(init)
