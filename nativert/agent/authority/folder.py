"""The operator's directory: the authority, and what each node, client and plugin is to get.

    authority.json                 what has been made
    ca.pem, ca.key                 the authority; the key stays here
    users                          with passwords: a line USER:PASSWORD for each role
    nodes/NAME/                    what goes to /etc/nativert of that node
    clients/NAME/, plugins/NAME/   credentials.toml, and what it names

Something is there whole, or not at all.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from nativert.agent.authority import certificates
from nativert.errors import Code, NativertError
from nativert.plugin.zenoh_credentials import CLIENT, NODE, PLUGIN
from nativert.store import files

_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_ADDRESS: Final = re.compile(r"[0-9A-Fa-f:.]+|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_ROLES: Final = {"nodes": NODE, "clients": CLIENT, "plugins": PLUGIN}
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")
_INDEX: Final = "authority.json"
_MAX_BYTES: Final = 1 << 20
_HEAD: Final = "# Made by `nativert zenoh init`; see docs/fog05.md.\n"


class Index(msgspec.Struct, forbid_unknown_fields=True):
    """What a directory has; the addresses of each node, the first is what others connect to."""

    port: int
    password: bool
    nodes: dict[str, list[str]] = msgspec.field(default_factory=dict)
    clients: list[str] = msgspec.field(default_factory=list)
    plugins: list[str] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be made; `nodes` has the addresses by which each is reached."""

    nodes: dict[str, list[str]]
    clients: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    days: int = 3650


def create(
    directory: Path, wanted: Wanted, *, port: int, password: bool, force: bool
) -> list[Path]:
    """Make an authority and everything that is wanted; return what is to be handed out.

    NativertError: NAME_TAKEN where something is, REQUIREMENTS without openssl.
    """
    _check(wanted)
    replaced = directory.exists() and any(directory.iterdir())
    if replaced and not (force and (directory / _INDEX).is_file()):
        hint = "--ca DIR adds to an authority, --force makes another one in its place"
        raise NativertError(f"{directory}: is there already", code=Code.NAME_TAKEN, hint=hint)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        undo.callback(shutil.rmtree, fresh, ignore_errors=True)
        certificates.make_authority(fresh / "ca.pem", fresh / "ca.key", "nativert authority")
        if password:
            lines = [f"{user}:{secrets.token_urlsafe(24)}\n" for user in _ROLES.values()]
            _write(fresh / "users", "".join(lines))
        index = Index(port=port, password=password)
        made = _make(fresh, fresh, index, wanted)
        _write(fresh / _INDEX, msgspec.json.encode(index).decode() + "\n")
        old = None
        if replaced:
            old = directory.with_name(f"{fresh.name}.old")
            directory.rename(old)
            back = undo.enter_context(ExitStack())
            back.callback(old.rename, directory)
        fresh.rename(directory)
        if old is not None:
            back.pop_all()
            shutil.rmtree(old)
        undo.pop_all()
    return [directory / one for one in made]


def extend(directory: Path, wanted: Wanted, *, force: bool) -> list[Path]:
    """Make more with the authority that is there; the same errors, NOT_FOUND without one."""
    _check(wanted)
    index = _index(directory)
    given = {"nodes": wanted.nodes, "clients": wanted.clients, "plugins": wanted.plugins}
    for kind, names in given.items():
        for name in names:
            if (directory / kind / name).exists() and not force:
                raise NativertError(
                    f"{directory / kind / name}: is there already",
                    code=Code.NAME_TAKEN,
                    hint="--force makes another key in its place",
                )
    with ExitStack() as undo:
        fresh = Path(tempfile.mkdtemp(prefix=".new.", dir=directory))
        undo.callback(shutil.rmtree, fresh, ignore_errors=True)
        made = _make(directory, fresh, index, wanted)
        placed = undo.enter_context(ExitStack())
        for one in made:
            goal = directory / one
            goal.parent.mkdir(mode=0o700, exist_ok=True)
            if goal.exists():
                old = fresh / f"old-{one.parent.name}-{one.name}"
                goal.rename(old)
                placed.callback(old.rename, goal)
            (fresh / one).rename(goal)
            placed.callback(goal.rename, fresh / one)
        files.replace_durably(directory / _INDEX, msgspec.json.encode(index) + b"\n")
        placed.pop_all()
    return [directory / one for one in made]


def _index(directory: Path) -> Index:
    try:
        return files.decode(directory / _INDEX, Index, limit_bytes=_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise NativertError(
            f"{directory}: no authority is there",
            code=Code.NOT_FOUND,
            hint="`nativert zenoh init --dir DIR` makes one",
        ) from None
    except files.DamagedError as e:
        raise NativertError(f"{directory / _INDEX}: {e}") from None


def _check(wanted: Wanted) -> None:
    for name in (*wanted.nodes, *wanted.clients, *wanted.plugins):
        if not _NAME.fullmatch(name):
            raise NativertError(
                f"{name!r} is not a name: letters, digits, dots and dashes", code=Code.USAGE
            )
    for addresses in wanted.nodes.values():
        for address in addresses:
            if not _ADDRESS.fullmatch(address):
                raise NativertError(
                    f"{address!r} is neither an IP address nor a host's name", code=Code.USAGE
                )


def _make(authority: Path, target: Path, index: Index, wanted: Wanted) -> list[Path]:
    """Make what is wanted in *target*, and enter it; return the directories, relative to it."""
    made: list[Path] = []
    index.nodes |= wanted.nodes
    for name in wanted.nodes:
        made.append(Path("nodes") / name)
        _make_node(authority, target / made[-1], index, name, wanted.days)
    for kind, listed, names in (
        ("clients", index.clients, wanted.clients),
        ("plugins", index.plugins, wanted.plugins),
    ):
        for name in names:
            made.append(Path(kind) / name)
            _make_client(authority, target / made[-1], kind, wanted.days, index)
            if name not in listed:
                listed.append(name)
    return made


def _make_node(authority: Path, target: Path, index: Index, name: str, days: int) -> None:
    keys, parts = target / "zenoh", target / "conf.d"
    for one in (keys, parts):
        one.mkdir(mode=0o700, parents=True)
    certificates.issue(
        _signer(authority), keys / "node.pem", keys / "node.key", NODE, days=days,
        serves=list(dict.fromkeys((name, *index.nodes[name], *_LOCAL))),
    )  # fmt: skip
    shutil.copyfile(authority / "ca.pem", keys / "ca.pem")
    users = ""
    if index.password:
        _write(keys / "users", (authority / "users").read_text())
        users = 'users = "zenoh/users"\n'
    others = [
        f"tls/{_host(next(iter(addresses), other))}:{index.port}"
        for other, addresses in index.nodes.items()
        if other != name
    ]
    _write(
        parts / "zenoh.toml",
        f"{_HEAD}[zenoh]\n"
        f'listen = ["tls/0.0.0.0:{index.port}"]\n'
        f"connect = {msgspec.json.encode(others).decode()}\n\n"
        '[zenoh.tls]\nca = "zenoh/ca.pem"\ncertificate = "zenoh/node.pem"\n'
        f'key = "zenoh/node.key"\n{users}',
    )


def _make_client(authority: Path, target: Path, kind: str, days: int, index: Index) -> None:
    role, word = _ROLES[kind], kind.removesuffix("s")
    target.mkdir(mode=0o700, parents=True)
    shutil.copyfile(authority / "ca.pem", target / "ca.pem")
    if index.password:
        users = dict(x.split(":", 1) for x in (authority / "users").read_text().splitlines())
        shown = f'user = "{role}"\npassword = "{users[role]}"\n'
    else:
        pem, key = target / f"{word}.pem", target / f"{word}.key"
        certificates.issue(_signer(authority), pem, key, role, days=days)
        shown = f'certificate = "{pem.name}"\nkey = "{key.name}"\n'
    _write(target / "credentials.toml", f'{_HEAD}ca = "ca.pem"\n{shown}')


def _signer(authority: Path) -> tuple[Path, Path]:
    return authority / "ca.pem", authority / "ca.key"


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _write(path: Path, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "w") as file:
        file.write(text)
