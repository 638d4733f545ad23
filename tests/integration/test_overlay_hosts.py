"""Agents of several hosts that are joined by their configuration, as between real ones."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import scale
from authorities import init
from network_hosts import ip
from nodes import CLI, make_document, until
from test_overlay_fleet import SERVER, asked, links, ok, opened, routes

from nativert.fleet import network, plan, up
from nativert.fleet.plan import Member, Plan
from nativert.runtime.overlay import plan as plans
from nativert.store.claims import Claims
from nativert.store.identity import open_identity

pytestmark = [pytest.mark.root, pytest.mark.netns]

LONG = scale.seconds(60)


@contextmanager
def hosts(
    tmp_path: Path, more: tuple[str, str], *, before: Callable[[Plan], None] = lambda _: None
) -> Iterator[list[Member]]:
    """Two nodes with the files of `nativert zenoh init`, and *more* of each; their agents.

    *before* is called when their hosts are there, and no agent is.
    """
    authority = tmp_path / "authority"
    made: Plan = plan.make(tmp_path, 2)
    named = [f"{node.name}={node.address}" for node in made.nodes]
    init("--dir", authority, *(word for each in named for word in ("--node", each)))
    agents: list[subprocess.Popen[bytes]] = []
    try:
        network.make(made)
        before(made)
        for node, text in zip(made.nodes, more, strict=True):
            node.paths.create()
            node.paths.netns.write_text(node.netns + "\n")
            node.paths.etc.mkdir(parents=True, exist_ok=True)
            own = f"{authority}/nodes/{node.name}/."
            subprocess.run(["cp", "-r", own, str(node.paths.etc)], check=True)
            (node.paths.etc / "conf.d" / "overlay.toml").write_text(text)
            open_identity(node.paths, Claims(), name=node.name)
            with up._in(node.netns):
                agents.append(up._agent(node))
        for node in made.nodes:
            until(lambda: up._ready(node, made.nodes), deadline_s=LONG)  # noqa: B023
        yield made.nodes
    finally:
        for node in made.nodes:
            clean = [*CLI, "--root", node.directory, "rm", "--force", "web"]
            subprocess.run(clean, capture_output=True, timeout=LONG)
        for agent in agents:
            agent.terminate()
            agent.wait(LONG)
        for node in made.nodes:
            alone = [*CLI, "--root", node.directory, "--no-agent", "gc"]
            subprocess.run(alone, check=True, capture_output=True, timeout=LONG)
            left = links(node)
            Claims().release_node(open_identity(node.paths, Claims()).id)
            assert "nr" not in left.replace("nrf", ""), left
        network.remove(made)


def test_with_certificates_they_are_joined_where_it_is_asked_for(tmp_path: Path) -> None:
    asked_for = "[overlay]\nenabled = true\n"
    with hosts(tmp_path, (asked_for, asked_for)) as (one, two):
        # `zenoh init` has them listen at any address: each found out which one others reach.
        for node in (one, two):
            planned = plans.read(node.paths.run / "net" / "overlay.json")
            assert planned is not None
            assert planned.address == node.address
        page = tmp_path / "web.json"
        native = {"network": {"ports": ["18080:80"]}}
        page.write_text(
            json.dumps(make_document(name="web", python=SERVER, veth=True, native=native))
        )
        ok(one.root, "run", "-d", str(page))
        web = ok(one.root, "inspect", "web")["native"]["interfaces"][0]["address"]
        until(lambda: asked(two, web) != "", deadline_s=LONG, what="it is joined, and serves")
        assert ok(one.root, "migrate", "web", two.name)["addresses"] == {"eth0": web}
        until(lambda: asked(one, web) != "", deadline_s=LONG, what="it serves at its address")
        assert asked(one, two.address, 18080) != ""


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("[overlay]\nenabled = true\n", ""), ""),
        (("[overlay]\nenabled = true\n", "[overlay]\nenabled = true\nvni = 9\n"), "it has VNI 9"),
    ],
)
def test_who_is_not_joined_gets_a_new_address(
    tmp_path: Path, more: tuple[str, str], why: str
) -> None:
    with hosts(tmp_path, more) as (one, two):
        assert ("nrx-" in links(two)) == bool(why)
        assert "onlink" not in routes(one)
        rows = {row["name"]: row for row in ok(one.root, "doctor")}
        joined = rows["overlay network"]
        assert joined["ok"] != bool(why)
        assert why in joined["detail"]
        page = tmp_path / "web.json"
        page.write_text(json.dumps(make_document(name="web", python=SERVER, veth=True)))
        ok(one.root, "run", "-d", str(page))
        web = ok(one.root, "inspect", "web")["native"]["interfaces"][0]["address"]
        moved = ok(one.root, "migrate", "web", two.name)["addresses"]["eth0"]
        assert moved != web
        until(lambda: asked(two, moved) != "", deadline_s=LONG, what="it serves there")
        assert asked(one, moved) == ""


def test_a_node_that_cannot_be_joined_works_as_one_alone(tmp_path: Path) -> None:
    enabled = "[overlay]\nenabled = true\n"

    def taken(made: Plan) -> None:
        other = ["type", "vxlan", "id", "7447", "dstport", "4789", "local", made.nodes[1].address]
        with opened(made.nodes[1]) as netns:
            ip("link", "add", "other", *other, netns=netns)

    with hosts(tmp_path, (enabled, enabled), before=taken) as (_, two):
        said = (two.root / "agent.log").read_text()
        assert said.count("another link of this host has VNI 7447 on UDP port 4789") == 1
        assert "overlay network" not in {row["name"] for row in ok(two.root, "doctor")}
        page = tmp_path / "web.json"
        page.write_text(json.dumps(make_document(name="web", python=SERVER, veth=True)))
        ok(two.root, "run", "-d", str(page))
        web = ok(two.root, "inspect", "web")["native"]["interfaces"][0]["address"]
        until(lambda: asked(two, web) != "", deadline_s=LONG, what="it serves")
        assert "other" in links(two)
        # It is joined as soon as it can be.
        with opened(two) as netns:
            ip("link", "del", "other", netns=netns)
        until(lambda: "nrx-" in links(two), deadline_s=LONG, what="it is joined")
        ok(two.root, "rm", "--force", "web")
