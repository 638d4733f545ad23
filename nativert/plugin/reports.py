"""What a node reports, handed on to those who want to hear it."""

from __future__ import annotations

from typing import Protocol

from nativert.runtime.protocols import Reporter


class Listeners(Protocol):
    """Where a plugin asks to be told."""

    def add(self, reporter: Reporter) -> None:
        """Have *reporter* told from now on."""
        ...


class Reports:
    """Satisfies `Reporter`: a node is made with it, listeners come later."""

    def __init__(self) -> None:
        self._reporters: tuple[Reporter, ...] = ()

    def add(self, reporter: Reporter) -> None:
        """Have *reporter* told from now on."""
        self._reporters = (*self._reporters, reporter)

    def update_fdu_status(self, fdu: str, instance: str, status: str) -> None:
        """An operation has ended in *status*, a word of the wire."""
        for reporter in self._reporters:
            reporter.update_fdu_status(fdu, instance, status)

    def write_fdu_error(self, fdu: str, instance: str, code: int, message: str) -> None:
        """An operation has failed; the state is what it was before."""
        for reporter in self._reporters:
            reporter.write_fdu_error(fdu, instance, code, message)
