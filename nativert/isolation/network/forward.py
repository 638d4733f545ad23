"""Finding other people's rules that drop what a bridge forwards (Docker, ufw, firewalld)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from nativert.isolation.network import nftables

_IPTABLES_TABLES: Final = "/proc/net/ip_tables_names"


class Drop(NamedTuple):
    """A chain of somebody else's that drops by policy; `mend` are commands, parted by "; "."""

    what: str
    mend: str


def foreign_drops(bridge: str) -> list[Drop]:
    """Return the chains that keep the bridge's packets.

    No accept in the node's own table could help: a packet passes when every chain of the
    hook accepts it. OSError if the rule set cannot be listed.
    """
    found = policy_drops(nftables.listing("ruleset"), bridge)
    if _legacy_drops():
        rules = (f"iptables-legacy -I FORWARD -{side} {bridge} -j ACCEPT" for side in "io")
        found.append(Drop("iptables-legacy chain FORWARD has policy DROP", "; ".join(rules)))
    return found


def policy_drops(ruleset: Sequence[dict[str, Any]], bridge: str) -> list[Drop]:
    """Return those of a rule set as libnftables-json(5) lists it."""
    found: list[Drop] = []
    for entry in ruleset:
        chain = entry.get("chain", {})
        if chain.get("hook") != "forward" or chain.get("policy") != "drop":
            continue
        if chain["family"] not in ("ip", "inet"):
            continue
        place = (chain["family"], chain["table"], chain["name"])
        if _accepted(ruleset, place, bridge) == {"iifname", "oifname"}:
            continue
        where = " ".join(place)
        rules = "; ".join(
            f"nft insert rule {where} {side}name {bridge} accept" for side in ("iif", "oif")
        )
        found.append(Drop(f"nftables chain {where} has policy drop", rules))
    return found


def _accepted(
    ruleset: Sequence[dict[str, Any]], place: tuple[str, str, str], bridge: str
) -> set[str]:
    """Return by which sides (iifname, oifname) the chain accepts the bridge's packets."""
    sides: set[str] = set()
    for entry in ruleset:
        rule = entry.get("rule", {})
        if (rule.get("family"), rule.get("table"), rule.get("chain")) != place:
            continue
        expressions = rule.get("expr", [])
        if not any("accept" in expression for expression in expressions):
            continue
        matches = [e["match"] for e in expressions if "match" in e]
        # More conditions than the interface mean that only some packets pass.
        if len(matches) == 1 and matches[0].get("right") == bridge:
            left = matches[0].get("left", {})
            sides.add(left.get("meta", {}).get("key", "") if isinstance(left, dict) else "")
    return sides & {"iifname", "oifname"}


def _legacy_drops() -> bool:
    import shutil
    import subprocess

    # Asked first, because listing would load the legacy tables where nobody uses them.
    try:
        with open(_IPTABLES_TABLES, encoding="ascii") as names:
            if "filter" not in names.read().split():
                return False
    except FileNotFoundError:
        return False
    binary = shutil.which("iptables-legacy", path=nftables.PATH)
    if binary is None:
        return False
    done = subprocess.run(
        [binary, "-w", "5", "-S", "FORWARD"],
        capture_output=True,
        text=True,
        check=False,
        timeout=nftables.TIMEOUT_S,
        env={"LC_ALL": "C", "PATH": nftables.PATH},
    )
    return "-P FORWARD DROP" in done.stdout.splitlines()
