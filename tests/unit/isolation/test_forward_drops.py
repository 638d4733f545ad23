"""Which chains of others keep a bridge's packets, from rule sets as nft lists them."""

from __future__ import annotations

from typing import Any

import pytest

from nativert.isolation.network.forward import policy_drops

BRIDGE = "nrt-a1b2c3"


def chain(family: str = "ip", hook: str = "forward", policy: str = "drop") -> dict[str, Any]:
    return {
        "chain": {
            "family": family,
            "table": "filter",
            "name": "FORWARD",
            "type": "filter",
            "hook": hook,
            "prio": 0,
            "policy": policy,
        }
    }


def rule(side: str, bridge: str = BRIDGE, verdict: str = "accept", **more: Any) -> dict[str, Any]:
    match = {"match": {"op": "==", "left": {"meta": {"key": side}}, "right": bridge}}
    extra = [{"match": more}] if more else []
    place = {"family": "ip", "table": "filter", "chain": "FORWARD"}
    return {"rule": {**place, "expr": [match, *extra, {verdict: None}]}}


@pytest.mark.parametrize("family", ["ip", "inet"])
def test_a_drop_policy_is_told_with_both_rules(family: str) -> None:
    [drop] = policy_drops([{"metainfo": {}}, chain(family)], BRIDGE)
    assert f"{family} filter FORWARD" in drop.what
    for side in ("iifname", "oifname"):
        assert f"nft insert rule {family} filter FORWARD {side} {BRIDGE} accept" in drop.mend


@pytest.mark.parametrize(
    "harmless",
    [chain(policy="accept"), chain(hook="input"), chain("ip6"), {"chain": {"name": "DOCKER"}}],
)
def test_other_chains_are_no_matter(harmless: dict[str, Any]) -> None:
    assert policy_drops([harmless], BRIDGE) == []


def test_the_mending_rules_end_it() -> None:
    assert policy_drops([chain(), rule("iifname"), rule("oifname")], BRIDGE) == []


@pytest.mark.parametrize(
    "second",
    [
        rule("iifname"),
        rule("oifname", bridge="docker0"),
        rule("oifname", verdict="drop"),
        rule("oifname", op="==", left={"meta": {"key": "l4proto"}}, right="tcp"),
    ],
)
def test_half_of_them_does_not(second: dict[str, Any]) -> None:
    assert len(policy_drops([chain(), rule("iifname"), second], BRIDGE)) == 1
