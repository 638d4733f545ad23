"""Who may do what with a node over Zenoh: one table, and the rules of Zenoh that it comes to.

What is not in the table is denied. Zenoh looks at a link, not at who has first said something:
what a client asks of another node comes there from the node that the client is connected to.
So nodes may do what clients may.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from nativert.agent.config import Zenoh, ZenohTls
from nativert.errors import Code, NativertError
from nativert.plugin.zenoh_credentials import (
    CLIENT,
    NODE,
    PLUGIN,
    Credentials,
    listening,
    private,
)

_CLIENTS_ASK: Final = ("agfos/**", "dgfos/**", "yaks_shim/ready")
_BETWEEN_NODES: Final = ("agfos/**", "dgfos/**", "nativert/**", "yaks_shim/ready")
# What a plugin says of its node; `{node}` is this node's id.
_OF_PLUGINS: Final = tuple(
    f"alfos/{{node}}/{below}"
    for below in ("plugins/**", "runtimes/**", "network_managers/**", "os/**")
)
_LOCAL: Final = ("alfos/{node}/**", "dlfos/{node}/**")


class Grant(NamedTuple):
    """Who may do something with the keys that one of *keys* includes."""

    role: str
    may: str
    keys: tuple[str, ...]


TABLE: Final = (
    Grant(CLIENT, "ask", _CLIENTS_ASK),
    Grant(CLIENT, "hear", ("agfos/**",)),
    Grant(CLIENT, "put", ("dgfos/**",)),
    Grant(PLUGIN, "ask", (*_LOCAL, "yaks_shim/ready")),
    Grant(PLUGIN, "hear", _LOCAL),
    Grant(
        PLUGIN,
        "put",
        (
            *_OF_PLUGINS,
            "alfos/{node}/info",
            "alfos/{node}/status",
            "dlfos/{node}/network_managers/**",
        ),
    ),
    Grant(PLUGIN, "serve", _OF_PLUGINS),
    Grant(PLUGIN, "live", ("alfos/{node}/plugins/*/info",)),
    Grant(NODE, "ask", _BETWEEN_NODES),
    Grant(NODE, "hear", _BETWEEN_NODES),
    Grant(NODE, "put", _BETWEEN_NODES),
    Grant(NODE, "serve", _BETWEEN_NODES),
    Grant(NODE, "live", ("nativert/**",)),
    Grant(NODE, "watch", ("nativert/**",)),
)

# What comes in with each, and what goes out to whoever may do it.
_MESSAGES: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "ask": (("query",), ("reply", "declare_queryable")),
    "serve": (("declare_queryable", "reply"), ("query",)),
    "put": (("put", "delete"), ("declare_subscriber",)),
    "hear": (("declare_subscriber",), ("put", "delete")),
    "live": (("liveliness_token",), ("liveliness_query", "declare_liveliness_subscriber")),
    "watch": (("liveliness_query", "declare_liveliness_subscriber"), ("liveliness_token",)),
}


def options(config: Zenoh, node_id: str) -> dict[str, Any]:
    """Return the keys of Zenoh's own configuration for a node; NativertError for a wrong file."""
    tls, shown = config.tls, credentials(config)
    if tls is None or shown is None:
        return {}
    access = config.access
    names = {NODE: access.nodes, CLIENT: access.clients, PLUGIN: access.plugins}
    return {
        **shown.options(),
        **listening(tls.certificate, tls.key, tls.users),
        "access_control": control(node_id, names, users=tls.users is not None),
    }


def credentials(config: Zenoh) -> Credentials | None:
    """Return what the node itself shows to others; NativertError for a wrong file."""
    tls = config.tls
    if tls is None:
        return None
    for secret in (tls.key, *([tls.users] if tls.users else [])):
        private(Path(secret))
    return Credentials(ca=tls.ca, certificate=tls.certificate, key=tls.key, **_login(tls))


def _login(tls: ZenohTls) -> dict[str, str]:
    """Return what the node itself logs in with: its entry of the file of all."""
    if tls.users is None:
        return {}
    for line in Path(tls.users).read_text().splitlines():
        user, _, password = line.partition(":")
        if user == NODE and password:
            return {"user": user, "password": password}
    raise NativertError(
        f"{tls.users}: has no line {NODE}:PASSWORD, with which this node logs in at others",
        code=Code.DESCRIPTOR,
    )


def control(node_id: str, names: Mapping[str, Iterable[str]], *, users: bool) -> dict[str, Any]:
    """Return Zenoh's `access_control` of a node.

    *names* has the common names of each role's certificates; with *users* clients and plugins
    are known by these as users. Whoever is connected to shows a certificate in any case, and a
    node that is connected to is known by nothing else.
    """
    rules: list[dict[str, Any]] = []
    of_role: dict[str, list[str]] = {role: [] for role in names}
    for grant in TABLE:
        for rule in _rules(grant, node_id):
            rules.append(rule)
            of_role[grant.role].append(rule["id"])
    subjects = []
    for role, given in names.items():
        listed = list(given)
        if not listed:
            continue
        if not users or role == NODE:
            subjects.append({"id": f"{role} certificate", "cert_common_names": listed})
        if users:
            subjects.append({"id": f"{role} user", "usernames": listed})
    policies = [
        {"rules": of_role[role], "subjects": [f"{role} {how}"]}
        for role in names
        for how in ("certificate", "user")
        if any(subject["id"] == f"{role} {how}" for subject in subjects)
    ]
    return {
        "enabled": True,
        "default_permission": "deny",
        "rules": rules,
        "subjects": subjects,
        "policies": policies,
    }


def _rules(grant: Grant, node_id: str) -> Iterator[dict[str, Any]]:
    keys = [key.format(node=node_id) for key in grant.keys]
    for flow, messages in zip(("ingress", "egress"), _MESSAGES[grant.may], strict=True):
        yield {
            "id": f"{grant.role} {grant.may} {flow}",
            "permission": "allow",
            "flows": [flow],
            "messages": list(messages),
            "key_exprs": keys,
        }
