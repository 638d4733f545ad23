"""An instance with another descriptor: what it is and has stays, what it shall do changes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agents import serving
from nodes import address, log_text, make_descriptor, make_document, start, until_logged

from nativert.errors import Code, DescriptorError, NativertError, TransitionError
from nativert.runtime.node import Node

pytestmark = [pytest.mark.root, pytest.mark.netns]

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
FIRST = "echo first >> /data/file; cat /data/file; exec sleep 1000"
SECOND = "echo second >> /data/file; cat /data/file; echo $COLOUR; exec sleep 1000"


def down(node: Node, ref: str) -> None:
    node.stop(ref)
    node.clean(ref)


def given(node: Node, ref: str) -> list[tuple[str, str]]:
    return [(i.name, i.address) for i in node.context.store.find(ref).interfaces]


def test_it_keeps_what_it_has_and_does_what_it_is_told(node: Node) -> None:
    one = start(node, shell=FIRST, veth=True)
    node.scale(one, {"pids_max": 50})
    until_logged(node, one, "first\n")
    before, where = node.get(one), address(node, one)
    down(node, one)
    cursor = node.latest_event()
    changed = make_descriptor(
        shell=SECOND,
        veth=True,
        native={"memory": {"max": "48M"}, "env": {"COLOUR": "green"}},
    )
    assert node.redefine(one, changed).state == "DEFINED"
    assert [event.kind for event in node.events(cursor)] == ["redefined"]
    node.configure(one)
    node.run(one)
    until_logged(node, one, "first\nsecond\ngreen\n")
    after = node.get(one)
    assert (after.instance, after.name, after.fdu) == (before.instance, before.name, before.fdu)
    assert address(node, one) == where
    (figures,) = node.stats([one])
    assert (figures.memory_max, figures.pids_max) == (48 << 20, None)


def test_interfaces_come_and_go(node: Node) -> None:
    names = ("a", "b", "c")
    interfaces: Any = [{"name": name} for name in names]
    one = node.define(make_descriptor(shell=FIRST, interfaces=interfaces)).instance
    before = dict(given(node, one))
    fewer: Any = [{"name": "c"}, {"name": "new"}, {"name": "a"}]
    node.redefine(one, make_descriptor(shell=FIRST, interfaces=fewer))
    after = given(node, one)
    assert [name for name, _ in after] == ["c", "new", "a"]
    assert (dict(after)["a"], dict(after)["c"]) == (before["a"], before["c"])
    assert dict(after)["new"] not in before.values()
    node.configure(one)
    node.run(one)
    until_logged(node, one, "first\n")
    down(node, one)
    node.redefine(one, make_descriptor(shell=FIRST))
    assert given(node, one) == []
    node.undefine(one)
    other = node.define(make_descriptor(shell=FIRST, interfaces=interfaces)).instance
    assert len(given(node, other)) == 3


def test_only_where_nothing_is_made_of_the_one_before(node: Node) -> None:
    one = start(node, shell=FIRST)
    changed = make_descriptor(shell=SECOND)
    for bring in (lambda: None, lambda: node.stop(one)):
        bring()
        state = node.get(one).state
        with pytest.raises(TransitionError, match=f"app: cannot redefine: the instance is {state}"):
            node.redefine(one, changed)
    node.clean(one)
    with pytest.raises(DescriptorError, match="is that of FDU"):
        node.redefine(one, make_descriptor(name="other", shell=SECOND))
    with pytest.raises(NativertError) as refused:
        node.redefine(
            one,
            make_descriptor(shell=SECOND, computation_requirements={"cpu_min_count": 4096}),
        )
    assert refused.value.code is Code.REQUIREMENTS
    node.configure(one)
    node.run(one)
    until_logged(node, one, "first\nfirst\n")
    assert "second" not in log_text(node, one)


def test_another_process_may_have_done_it(node: Node, make_node: Callable[..., Node]) -> None:
    one = node.define(make_descriptor(shell=FIRST)).instance
    node.configure(one)
    node.clean(one)
    # This process has it in the hand; the other one makes it one that somebody must attend.
    always = {"restart": {"policy": "always"}}
    make_node(node.paths.root).redefine(one, make_descriptor(shell=FIRST, native=always))
    node.configure(one)
    with pytest.raises(NativertError) as refused:
        node.run(one)
    assert refused.value.code is Code.NO_AGENT


@pytest.mark.parametrize("agent", [False, True])
def test_the_command_makes_it_or_changes_it(
    cli: Cli, node: Node, root: Path, tmp_path: Path, agent: bool
) -> None:
    document = tmp_path / "app.json"

    def define(text: str, code: int = 0) -> str:
        document.write_text(json.dumps(make_document(shell=text)))
        done = cli("define", "--replace", "--name", "mine", str(document))
        assert done.returncode == code, done.stderr
        return done.stdout or done.stderr

    def all_of_it() -> None:
        first = define(FIRST)
        assert define(SECOND) == first
        assert cli("configure", "mine").returncode == 0
        assert "mine: cannot redefine: the instance is CONFIGURED" in define(FIRST, code=4)
        assert cli("start", "mine").returncode == 0
        until_logged(node, "mine", "second\n")

    if agent:
        with serving(root):
            all_of_it()
    else:
        all_of_it()
    assert [row.name for row in node.list()] == ["mine"]
