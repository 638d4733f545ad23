"""The faults of a migration: which step of which side meets what. Generated, and counted."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from nativert.runtime import failpoints

SOON_S, LATE_S = 0.1, 1.6
ERRORS = ("enospc", "eio", "raise")
ASKED = ("PREPARE", "CHUNK", "FINISH", "COMMIT")
# What the network does to one kind of message.
WIRE = ("lose", "lose3", "deaf", "deaf3", "twice", "late", "replay", "after")
# Makes the destination refuse once everything was sent.
REFUSES = "land.unpacked=eio"


class Case(NamedTuple):
    """Failpoints of either side, what becomes of who dies or stops, and the wire's fault."""

    family: str
    source: str = ""
    target: str = ""
    back_s: float = SOON_S
    wire: str = ""

    def __str__(self) -> str:
        said = " ".join(part for part in (self.source, self.target, self.wire) if part)
        return f"{self.family}: {said}, back after {self.back_s:g} s"


def generate() -> list[Case]:
    """Return every case, in an order in which the neighbours are of one family."""
    leaving = (*failpoints.LEAVING, "move.removed")
    found = []
    for point, back_s in itertools.product(leaving, (SOON_S, LATE_S)):
        found.append(Case("source killed", f"{point}=kill", back_s=back_s))
        found.append(Case("source frozen", f"{point}=stop", back_s=back_s))
    for point, back_s in itertools.product(failpoints.LANDING, (SOON_S, LATE_S)):
        found.append(Case("target killed", target=f"{point}=kill", back_s=back_s))
        found.append(Case("target frozen", target=f"{point}=stop", back_s=back_s))
    for point, error in itertools.product(leaving, ERRORS):
        found.append(Case("source fails", f"{point}={error}"))
    for point, error in itertools.product(failpoints.LANDING, ERRORS):
        found.append(Case("target fails", target=f"{point}={error}"))
    for one, other in itertools.product(failpoints.LEAVING, failpoints.LANDING):
        found.append(Case("both killed", f"{one}=kill", f"{other}=kill"))
    for point, act in itertools.product(failpoints.COMING_BACK, ("kill", "stop", "eio")):
        found.append(Case("coming back", f"{point}={act}", REFUSES))
    for kind, fault in itertools.product(ASKED, WIRE):
        found.append(Case("wire", wire=f"{kind} {fault}"))
    for fault in WIRE:
        found.append(Case("wire", target=REFUSES, wire=f"ABORT {fault}"))
    for kind, back_s in itertools.product(ASKED, (SOON_S, LATE_S)):
        found.append(Case("cut off", wire=f"{kind} cut", back_s=back_s))
    return found
