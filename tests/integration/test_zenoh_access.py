"""Who may talk to nodes that ask for certificates, or for passwords, and about what."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import scale
import zenoh
from agents import serving, start
from authorities import client, found, free_ports, hand_out, init, session, whole_life
from fog05_clients import FIMAPI, descriptor, in_time
from nodes import CLI, MakeNode, until
from nodes import start as start_instance

from nativert.errors import NativertError
from nativert.fog05 import install, yaks
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

LONG = scale.LONG_S
TREE = "agfos/0/tenants/0"
ASKED = "dgfos/0/tenants/0"


class Pair:
    """Two nodes of one authority with their agents, each in its own root; *more* is for b."""

    def __init__(self, tmp_path: Path, make_node: MakeNode, *options: str, more: str = "") -> None:
        self.authority = tmp_path / "authority"
        nodes = ("--node", "a=127.0.0.1", "--node", "b=127.0.0.1")
        init("--dir", self.authority, *nodes, "--plugin", "p", *options)
        self.ports = free_ports(2)
        self.roots = [tmp_path / name / "node" for name in ("a", "b")]
        self.nodes: list[Node] = []
        for number, (name, root) in enumerate(zip(("a", "b"), self.roots, strict=True)):
            others = self.ports[:number]
            root.parent.mkdir()
            hand_out(self.authority, name, root, self.ports[number], *others)
            self.nodes.append(make_node(root))
        with (self.roots[1] / "etc/nativert/conf.d/zenoh.toml").open("a") as file:
            file.write(more)
        self.ids = [node.identity.id for node in self.nodes]
        self.stack = ExitStack()
        self.agents = [self.stack.enter_context(serving(root)) for root in self.roots]

    @property
    def credentials(self) -> Path:
        return self.authority / "clients/client/credentials.toml"

    def api(self, number: int = 0) -> FIMAPI:
        api = self.stack.enter_context(client(self.ports[number], self.credentials))
        until(
            lambda: sorted(in_time(api.node.list)) == sorted(self.ids),
            deadline_s=LONG,
            what="both nodes are seen",
        )
        return api


@pytest.fixture
def pair(tmp_path: Path, make_node: MakeNode) -> Iterator[Pair]:
    one = Pair(tmp_path, make_node)
    with one.stack:
        yield one


@pytest.fixture
def logged_in(tmp_path: Path, make_node: MakeNode) -> Iterator[Pair]:
    one = Pair(tmp_path, make_node, "--password")
    with one.stack:
        yield one


def test_the_client_drives_both_nodes_by_its_certificate(pair: Pair) -> None:
    whole_life(pair.api(), in_time, descriptor(name="certified", shell="sleep 1000"), pair.ids)


def test_the_client_drives_both_nodes_by_its_password(logged_in: Pair) -> None:
    text = logged_in.credentials.read_text()
    assert "password" in text
    assert "certificate" not in text
    whole_life(
        logged_in.api(), in_time, descriptor(name="known", shell="sleep 1000"), logged_in.ids
    )


def test_an_instance_is_moved_between_nodes_that_show_certificates(pair: Pair) -> None:
    api = pair.api()
    fdu = in_time(lambda: api.fdu.onboard(descriptor(name="mover", shell="sleep 1000")))
    instance = in_time(lambda: api.fdu.define(fdu.get_uuid(), pair.ids[0])).get_uuid()
    in_time(lambda: api.fdu.configure(instance))
    in_time(lambda: api.fdu.start(instance))
    in_time(lambda: api.fdu.migrate(instance, pair.ids[1]))
    until(lambda: pair.nodes[1].get(instance).state == "RUNNING", deadline_s=LONG, what="it runs")
    with pair.agents[1].client() as other:
        other.migrate(instance, pair.ids[0])
    until(
        lambda: pair.nodes[0].get(instance).state == "RUNNING", deadline_s=LONG, what="it is back"
    )
    with pair.agents[1].client() as other:
        assert [row.alive for row in other.nodes()] == [True, True]
        # It is the other node's, and that carries it out.
        assert other.pause(instance).state == "PAUSED"
        assert other.resume(instance).state == "RUNNING"


def test_who_shows_nothing_of_this_authority_does_not_get_in(pair: Pair, tmp_path: Path) -> None:
    other = tmp_path / "other"
    init("--dir", other, "--node", "x")
    port = pair.ports[0]
    endpoint = f"127.0.0.1:{port}"
    began = time.monotonic()
    with pytest.raises(NativertError, match="cannot open") as none:
        yaks.Yaks.login(f"tls/{endpoint}")
    assert "is not accepted here" in none.value.hint
    with pytest.raises(NativertError, match="cannot open") as plain:
        yaks.Yaks.login(f"tcp/{endpoint}")
    assert "may want TLS" in plain.value.hint
    foreign = other / "clients/client"
    with pytest.raises(NativertError) as untrusted, client(port, foreign / "credentials.toml"):
        pass
    assert "is not accepted here" in untrusted.value.hint
    # It trusts the node by now, and is not trusted.
    (foreign / "ca.pem").write_bytes((pair.authority / "ca.pem").read_bytes())
    with pytest.raises(NativertError) as refused, client(port, foreign / "credentials.toml"):
        pass
    assert "does not accept the certificate shown" in refused.value.hint
    own = pair.authority / "clients/client/credentials.toml"
    own.write_text('ca = "ca.pem"\nuser = "nativert-client"\npassword = "guessed"\n')
    with pytest.raises(NativertError) as no_certificate, client(port, own):
        pass
    assert "CERTIFICATE_REQUIRED" in no_certificate.value.hint
    assert time.monotonic() - began < scale.seconds(60)


def test_a_wrong_password_does_not_get_in(logged_in: Pair) -> None:
    right = logged_in.credentials.read_text()
    password = right.partition('password = "')[2].partition('"')[0]
    logged_in.credentials.write_text(right.replace(password, "guessed"))
    with pytest.raises(NativertError) as refused, client(logged_in.ports[0], logged_in.credentials):
        pass
    assert "does not accept user nativert-client with this password" in refused.value.hint
    # The node's own password is not the client's.
    users = (logged_in.authority / "users").read_text()
    assert password in users
    logged_in.credentials.write_text(right.replace("nativert-client", "nativert-node"))
    with pytest.raises(NativertError), client(logged_in.ports[0], logged_in.credentials):
        pass


@pytest.mark.parametrize("kind", ["pair", "logged_in"])
def test_a_client_may_ask_for_and_read_only_what_clients_do(
    kind: str, request: pytest.FixtureRequest
) -> None:
    nodes: Pair = request.getfixturevalue(kind)
    nodes.api()
    node_id = nodes.ids[0]
    info = f"{TREE}/nodes/{node_id}/info"
    with session(nodes.ports[0], nodes.credentials) as one:
        until(lambda: info in found(one, f"{TREE}/nodes/*/info"), deadline_s=LONG, what="its info")
        # What is a node's own: read by nobody, written by nobody.
        assert found(one, f"alfos/{node_id}/**") == []
        assert found(one, f"nativert/{node_id}/catalog") == []
        assert found(one, "**") == []
        assert [r for r in one.liveliness().get("nativert/**", timeout=5.0) if r.ok] == []
        # What clients write is what they desire; a node makes it what is.
        named = _named(one)
        one.put(_descriptor(ASKED, 1), json.dumps({"name": "desired"}))
        until(lambda: named(1) == "desired", deadline_s=LONG, what="it is there")
        one.put(_descriptor(TREE, 1), json.dumps({"name": "not desired"}))
        one.delete(_descriptor(TREE, 1))
        one.put(f"alfos/{node_id}/plugins/x/info", "{}")
        kept = one.declare_queryable(info, lambda query: query.reply(info, "{}"))
        one.put(_descriptor(ASKED, 2), json.dumps({"name": "later"}))
        until(lambda: named(2) == "later", deadline_s=LONG, what="what was put later is there")
        assert named(1) == "desired"
        assert found(one, f"{TREE}/nodes/{node_id}/plugins/x/info") == []
        for port in nodes.ports:
            with session(port, nodes.credentials) as other:
                until(lambda: found(other, info) != [], deadline_s=LONG, what="it is seen")
                assert found(other, info) == [info]
        kept.undeclare()


def _descriptor(tree: str, number: int) -> str:
    return f"{tree}/catalog/fdu/00000000-0000-4000-8000-00000000000{number}/info"


def _named(one: zenoh.Session) -> Callable[[int], str]:
    def named(number: int) -> str:
        replies = one.get(_descriptor(TREE, number), timeout=10.0)
        texts = [reply.ok.payload.to_string() for reply in replies if reply.ok is not None]
        return str(json.loads(texts[0])["name"]) if texts else "nothing"

    return named


def test_who_is_denied_is_told_by_the_deadline(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = pair.authority / "plugins/p/credentials.toml"
    node = pair.ids[0]
    yaks.show(plugin)
    try:
        one = yaks.Yaks.login(f"127.0.0.1:{pair.ports[0]}")
    finally:
        yaks.show(None)
    monkeypatch.setattr(yaks, "_JOIN_S", 1.0)
    workspace = one.workspace("/")
    record = f"/{ASKED}/nodes/{node}/fdu/f/instances/i/info"
    with pytest.raises(ValueError, match="no node takes it within 1 s") as put:
        workspace.put(record, yaks.Value("{}"))
    assert "access control" in str(put.value)
    with pytest.raises(ValueError, match="nobody answers") as asked:
        workspace.get(f"/{TREE}/nodes/{node}/agent/exec/heartbeat?(node_id={node})")
    assert "access control" in str(asked.value)
    one.logout()


def test_a_node_that_denies_another_one_is_no_place_to_move_to(
    tmp_path: Path, make_node: MakeNode
) -> None:
    # What shows the common name of our nodes is nobody to b.
    pair = Pair(tmp_path, make_node, more='[zenoh.access]\nnodes = ["others"]\n')
    with pair.stack:
        start_instance(pair.nodes[0], name="mover", shell="sleep 1000")
        with pair.agents[0].client() as here, pytest.raises(NativertError) as refused:
            here.migrate("mover", pair.ids[1])
        assert refused.value.code.exit_code == 3
        assert "let each other in" in refused.value.hint
        assert pair.nodes[0].get("mover").state == "RUNNING"
        with session(pair.ports[0], pair.credentials) as one:
            own = f"{TREE}/nodes/{pair.ids[0]}/info"
            selector = f"{TREE}/nodes/*/info"
            until(lambda: found(one, selector) != [], deadline_s=LONG, what="its own is seen")
            assert found(one, selector) == [own]


def test_a_node_that_is_made_later_is_let_in_by_those_that_are_there(
    pair: Pair, tmp_path: Path, make_node: MakeNode
) -> None:
    api = pair.api()
    init("--ca", pair.authority, "--node", "c=127.0.0.1")
    root = tmp_path / "c" / "node"
    root.parent.mkdir()
    hand_out(pair.authority, "c", root, *free_ports(1), pair.ports[0])
    later = make_node(root)
    with serving(root):
        ids = sorted([*pair.ids, later.identity.id])
        until(lambda: sorted(in_time(api.node.list)) == ids, deadline_s=LONG, what="all are seen")


def test_a_node_of_another_authority_says_in_its_log_that_it_is_not_let_in(
    pair: Pair, tmp_path: Path, make_node: MakeNode
) -> None:
    other = tmp_path / "other"
    init("--dir", other, "--node", "x=127.0.0.1")
    root = tmp_path / "x" / "node"
    root.parent.mkdir()
    hand_out(other, "x", root, *free_ports(1), pair.ports[0])
    make_node(root)
    with serving(root) as agent:
        until(
            lambda: (
                "not connected: the certificate of 127.0.0.1 is not accepted here"
                in agent.log.read_text()
            ),
            deadline_s=LONG,
            what="its log says so",
        )
    api = pair.api()
    assert sorted(in_time(api.node.list)) == sorted(pair.ids)


def test_the_plugin_process_serves_an_agent_that_asks_for_certificates(
    pair: Pair, tmp_path: Path, make_node: MakeNode
) -> None:
    root = tmp_path / "plugged" / "node"
    root.parent.mkdir()
    make_node(root)
    node_id = pair.ids[0]
    manifest = pair.authority / "plugins/native.json"
    uuid = "b9f0a7f2-5d43-4a6b-9a3e-2f6c1f0d7e44"
    configuration = {
        "ylocator": f"127.0.0.1:{pair.ports[0]}",
        "nodeid": node_id,
        "credentials": "p/credentials.toml",
    }
    document = {"uuid": uuid, "name": "native", "version": 1, "type": "runtime"}
    manifest.write_text(json.dumps(document | {"configuration": configuration}))
    process = subprocess.Popen(
        [*CLI, "--root", str(root), "plugin", str(manifest)], stdin=subprocess.DEVNULL
    )
    try:
        with session(pair.ports[0], pair.credentials) as one:
            key = f"{TREE}/nodes/{node_id}/plugins/{uuid}/info"
            until(lambda: found(one, key) == [key], deadline_s=LONG, what="the plugin is there")
            process.terminate()
            assert process.wait(LONG) == 0
            until(lambda: found(one, key) == [], deadline_s=LONG, what="the plugin is gone")
    finally:
        process.kill()
        process.wait(LONG)


def test_the_host_is_set_up_by_one_command(root: Path, node: Node, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    init("--root", root, "--port", str(port))
    credentials = root / "etc/nativert/zenoh-authority/clients/client/credentials.toml"
    listening = (root / "etc/nativert/conf.d/zenoh.toml").read_text()
    assert f'listen = ["tls/0.0.0.0:{port}"]' in listening
    with serving(root):
        for host in ("127.0.0.1", "localhost", socket.gethostname()):
            try:
                socket.create_connection((host, port), 5.0).close()
            except OSError:
                continue  # A host need not know itself by its name.
            yaks.show(credentials)
            try:
                one = yaks.Yaks.login(f"{host}:{port}")
            finally:
                yaks.show(None)
            one.logout()


def test_a_plain_listener_elsewhere_needs_to_be_asked_for(root: Path, node: Node) -> None:
    (port,) = free_ports(1)
    etc = root / "etc/nativert"
    etc.mkdir(parents=True)
    (etc / "config.toml").write_text(f'[zenoh]\nlisten = ["tcp/0.0.0.0:{port}"]\n')
    log = root.parent / "refused.log"
    with log.open("wb") as stderr:
        assert start(root, stderr=stderr.fileno()).wait(LONG) == 2
    told = log.read_text()
    assert "zenoh.listen: tcp/0.0.0.0" in told
    assert "nativert zenoh init" in told
    assert "--insecure" in told
    with serving(root, "--insecure"):
        yaks.Yaks.login(f"127.0.0.1:{port}").logout()


def test_install_takes_credentials_and_refuses_what_others_can_read(tmp_path: Path) -> None:
    authority = tmp_path / "authority"
    init("--dir", authority, "--client", "me")
    path = authority / "clients/me/credentials.toml"
    try:
        install(path)
        assert yaks._credentials() is not None
        (path.parent / "client.key").chmod(0o644)
        with pytest.raises(NativertError, match="others than its owner may read it"):
            install(path)
    finally:
        yaks.show(None)
    with pytest.raises(NativertError, match="No such file"):
        install(tmp_path / "none.toml")
