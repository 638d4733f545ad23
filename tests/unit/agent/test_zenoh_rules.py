"""The table of who may do what, and what of Zenoh's configuration comes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import zenoh

from nativert.agent.config import Zenoh, ZenohAccess, ZenohTls
from nativert.agent.fog05 import access
from nativert.errors import NativertError
from nativert.plugin.zenoh_credentials import CLIENT, NODE, PLUGIN
from nativert.plugin.zenoh_session import Settings, open_session

NAMES = {NODE: (NODE,), CLIENT: (CLIENT, "other"), PLUGIN: ()}


def allowed(role: str, flow: str, message: str, key: str) -> bool:
    control = access.control("n", {NODE: ("n",), CLIENT: ("c",), PLUGIN: ("p",)}, users=False)
    rules = {rule["id"]: rule for rule in control["rules"]}
    (policy,) = (p for p in control["policies"] if p["subjects"] == [f"{role} certificate"])
    return any(
        flow in rule["flows"]
        and message in rule["messages"]
        and any(zenoh.KeyExpr(one).includes(zenoh.KeyExpr(key)) for one in rule["key_exprs"])
        for rule in (rules[name] for name in policy["rules"])
    )


@pytest.mark.parametrize(
    ("key", "roles"),
    [
        ("dgfos/0/tenants/0/nodes/n/fdu/f/instances/i/info", {CLIENT, NODE}),
        ("dgfos/0/tenants/0/catalog/fdu/f/info", {CLIENT, NODE}),
        ("agfos/0/tenants/0/nodes/n/fdu/f/instances/i/info", {NODE}),
        ("agfos/0/tenants/0/catalog/fdu/f/info", {NODE}),
        ("nativert/moves/n", {NODE}),
        ("nativert/nodes/n", {NODE}),
        ("alfos/n/runtimes/p/fdu/f/instances/i/info", {PLUGIN}),
        ("alfos/n/plugins/p/info", {PLUGIN}),
        ("alfos/other/plugins/p/info", set()),
        ("alfos/n/configuration", set()),
        ("dlfos/n/runtimes/p/fdu/f/instances/i/info", set()),
        ("**", set()),
        ("*/0/tenants/0/nodes/n/info", set()),
    ],
)
def test_who_may_put_what(key: str, roles: set[str]) -> None:
    for message in ("put", "delete"):
        able = {role for role in NAMES if allowed(role, "ingress", message, key)}
        assert able == roles


@pytest.mark.parametrize(
    ("key", "roles"),
    [
        ("agfos/0/tenants/0/nodes/*/info", {CLIENT, NODE}),
        ("agfos/0/tenants/0/nodes/n/agent/exec/define_fdu", {CLIENT, NODE}),
        ("yaks_shim/ready", {CLIENT, NODE, PLUGIN}),
        ("nativert/n/catalog", {NODE}),
        ("nativert/moves/n", {NODE}),
        ("alfos/n/agent/exec/get_fdu_info", {PLUGIN}),
        ("alfos/other/agent/exec/get_fdu_info", set()),
        ("**", set()),
    ],
)
def test_who_may_ask_what(key: str, roles: set[str]) -> None:
    able = {role for role in NAMES if allowed(role, "ingress", "query", key)}
    assert able == roles
    # An answer goes out to who may ask, and to nobody else.
    assert {role for role in NAMES if allowed(role, "egress", "reply", key)} == roles


def test_a_client_answers_nobody() -> None:
    for message in ("declare_queryable", "reply", "liveliness_token", "liveliness_query"):
        for key in ("agfos/x", "dgfos/x", "nativert/nodes/x", "yaks_shim/ready"):
            assert not allowed(CLIENT, "ingress", message, key)


def test_it_is_what_zenoh_takes() -> None:
    for users in (False, True):
        control = access.control("n", NAMES, users=users)
        open_session(Settings(more={"access_control": control})).close()
        assert control["enabled"]
        assert control["default_permission"] == "deny"
        assert len({rule["id"] for rule in control["rules"]}) == len(control["rules"])


def test_subjects_are_certificates_or_users() -> None:
    by_certificate = access.control("n", NAMES, users=False)["subjects"]
    assert by_certificate == [
        {"id": f"{NODE} certificate", "cert_common_names": [NODE]},
        {"id": f"{CLIENT} certificate", "cert_common_names": [CLIENT, "other"]},
    ]
    by_user = access.control("n", NAMES, users=True)["subjects"]
    # A node that is connected to has shown its certificate, and never logs in.
    assert by_user == [
        {"id": f"{NODE} certificate", "cert_common_names": [NODE]},
        {"id": f"{NODE} user", "usernames": [NODE]},
        {"id": f"{CLIENT} user", "usernames": [CLIENT, "other"]},
    ]


def test_without_tls_nothing_is_asked_for() -> None:
    assert access.options(Zenoh(), "n") == {}


def test_a_node_logs_in_with_its_own_line(tmp_path: Path) -> None:
    key, users = tmp_path / "key", tmp_path / "users"
    for path in (key, users):
        path.touch(0o600)
    tls = ZenohTls(ca="a", certificate="c", key=str(key), users=str(users))
    config = Zenoh(listen=(), tls=tls, access=ZenohAccess(clients=("me",)))
    with pytest.raises(NativertError, match="has no line nativert-node:PASSWORD"):
        access.options(config, "n")
    users.write_text("me:x\nnativert-node:se:cret\n")
    options = access.options(config, "n")
    assert options["transport/auth/usrpwd/user"] == NODE
    assert options["transport/auth/usrpwd/password"] == "se:cret"
    assert options["transport/auth/usrpwd/dictionary_file"] == str(users)
    assert options["transport/link/tls/enable_mtls"] is False
    users.chmod(0o640)
    with pytest.raises(NativertError, match="others than its owner may read it"):
        access.options(config, "n")
