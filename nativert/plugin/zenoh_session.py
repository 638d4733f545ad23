"""Opening a Zenoh session: a peer that needs no router.

Nothing may fork after that without exec: Zenoh has threads of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import zenoh

from nativert.errors import Code, NativertError
from nativert.plugin.zenoh_credentials import Credentials
from nativert.plugin.zenoh_refusal import refusal

# Zenoh drops what is not allowed without a word: so who waits in vain can only guess.
SILENCE: Final = (
    "the node may be down or cut off, or its access control may not let this through: "
    "look at its agent, and at the credentials used here"
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a session reaches others; endpoints as ``tcp/127.0.0.1:7447``, times in seconds.

    `scouting` is the interface on which peers are looked for by multicast (`auto` is any of
    them), empty for none. A peer that says nothing for `lease_s` is gone. `credentials` are shown
    to those who are connected to. `more` has further keys of Zenoh's own configuration, with JSON
    values.
    """

    listen: tuple[str, ...] = ()
    connect: tuple[str, ...] = ()
    scouting: str = ""
    lease_s: float = 2.0
    mode: str = "peer"
    credentials: Credentials | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


def reason(e: zenoh.ZError) -> str:
    """Return what an error of Zenoh says, without the places in its source."""
    return str(e).partition(" at /")[0].rstrip(".")


def open_session(settings: Settings) -> zenoh.Session:
    """Return an open session; NativertError NETWORK where an endpoint cannot be had.

    Endpoints to connect to may come up later: they are tried again for ever.
    """
    # Zenoh's own default is to listen everywhere; here it is nowhere.
    values: dict[str, Any] = {
        "mode": settings.mode,
        "listen/endpoints": list(settings.listen),
        "connect/endpoints": list(settings.connect),
        "connect/timeout_ms": -1 if settings.mode == "peer" else 3000,
        "connect/exit_on_failure": settings.mode != "peer",
        "connect/retry": {"period_init_ms": 100, "period_max_ms": 1000},
        "scouting/multicast/enabled": bool(settings.scouting),
        "transport/link/tx/lease": round(settings.lease_s * 1000),
        # A peer that takes nothing any more holds up what is said to the others.
        "transport/link/tx/queue/congestion_control/block/wait_before_close": 1_000_000,
    }
    if settings.scouting:
        values["scouting/multicast/interface"] = settings.scouting
    if settings.credentials is not None:
        values |= settings.credentials.options()
    config = zenoh.Config()
    for key, value in {**values, **settings.more}.items():
        try:
            config.insert_json5(key, json.dumps(value))
        except zenoh.ZError as e:
            raise NativertError(
                f"zenoh: {key} cannot be {value!r}: {reason(e)}", code=Code.USAGE
            ) from None
    try:
        return zenoh.open(config)
    except zenoh.ZError as e:
        where = ", ".join((*settings.listen, *settings.connect)) or "no endpoint"
        text = f"zenoh: cannot open {where}: {reason(e)}"
        hint = ""
        if settings.mode != "peer":
            hint = "; ".join(refusal(one, settings.credentials) for one in settings.connect)
        raise NativertError(text, code=Code.NETWORK, hint=hint) from None
