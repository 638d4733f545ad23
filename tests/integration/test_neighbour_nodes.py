"""Two nodes on one host: what one cleans up is nothing of the other's."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import scale
from aftermath import FOREVER, PORT, driver, facts, kill
from nodes import MakeNode, address, make_descriptor, run_inside, start, tag_of, until_logged

from nativert.errors import Code, NativertError
from nativert.isolation import process
from nativert.isolation.cgroups.driver import LAUNCHER
from nativert.runtime.node import Node
from nativert.store.claims import Claims
from nativert.store.identity import open_identity
from nativert.store.paths import Paths

pytestmark = [pytest.mark.root, pytest.mark.netns]


def test_the_clean_up_of_one_node_changes_nothing_of_another(
    make_node: MakeNode, tmp_path: Path
) -> None:
    roots = tmp_path / "one", tmp_path / "other"
    one, other = (make_node(root) for root in roots)
    server = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=80, bind='0.0.0.0')"
    published = {"network": {"ports": [f"{PORT}:80"]}}
    kept = start(other, python=server, veth=True, native=published)
    until_logged(other, kept, "Serving")
    host = address(other, kept)
    before = host_state(other, roots[1], kept)
    for _ in range(3):
        uuid = start(one, shell=FOREVER, veth=True)
        with pytest.raises(NativertError) as taken:
            one.configure(
                one.define(
                    make_descriptor(
                        name="taken",
                        shell=FOREVER,
                        veth=True,
                        native=published,
                    )
                ).instance
            )
        assert taken.value.code is Code.PORT_TAKEN
        one.remove("taken")
        kill(facts(roots[0], uuid)["init_pid"])
        one.gc()
        one.remove(uuid)
        assert all(found.removed for found in one.gc())
        assert host_state(other, roots[1], kept) == before
    assert one.gc(dry_run=True) == []
    for where in ((host, 80), ("127.0.0.1", PORT)):
        socket.create_connection(where, timeout=scale.seconds(5)).close()
    assert run_inside(other, kept, "echo", "alive") == (0, "alive\n")


def host_state(node: Node, root: Path, uuid: str) -> dict[str, object]:
    """What of a node another one could have changed."""
    tag = tag_of(root)
    table = subprocess.run(
        ["nft", "list", "table", "ip", f"nativert_{tag}"], capture_output=True, text=True
    )
    table_inet = subprocess.run(
        ["nft", "list", "table", "inet", f"nativert_{tag}"], capture_output=True, text=True
    )
    noted = facts(root, uuid)
    return {
        "facts": noted,
        "alive": process.alive(noted["init_pid"], noted["init_start"]),
        "links": sorted(node._context.network.links()),
        "bridge": os.path.exists(f"/sys/class/net/nrt-{tag}"),
        "tables": (table.stdout, table_inet.stdout),
        "cgroups": driver(root).names(),
        "launcher": driver(root).open(LAUNCHER).pids(),
        "claims": Claims().ports(open_identity(Paths(root), Claims()).id),
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
    }


def test_a_copied_root_is_refused_while_its_owner_lives(
    node: Node, root: Path, tmp_path: Path
) -> None:
    uuid = start(node, shell=FOREVER)
    copy = tmp_path / "copy"
    shutil.copytree(root / "var", copy / "var", ignore=lambda *_: ["data"])
    with pytest.raises(NativertError, match="copy"):
        Node(copy)
    assert node.get(uuid).state == "RUNNING"
