"""What happens to instances, told to everybody who wants to know: the log, plugins, supervision."""

from __future__ import annotations

import logging

from nativert.agent.logs import LOGGER
from nativert.runtime.protocols import Reporter


class LogReporter:
    """Writes every outcome to the agent's log."""

    def update_fdu_status(self, fdu: str, instance: str, status: str) -> None:
        """Tell where an operation has ended."""
        fields = {"fdu": fdu, "instance": instance, "status": status}
        LOGGER.info("operation ended", extra=fields)

    def write_fdu_error(self, fdu: str, instance: str, code: int, message: str) -> None:
        """Tell of a failed operation."""
        LOGGER.warning(message, extra={"fdu": fdu, "instance": instance, "code": code})


class FanOut:
    """Satisfies `Reporter` and a plugin's `Listeners`: one reporter for several.

    A fault of one does not keep the others from hearing.
    """

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = list(reporters)

    def add(self, reporter: Reporter) -> None:
        """Tell *reporter* too from now on."""
        self._reporters.append(reporter)

    def update_fdu_status(self, fdu: str, instance: str, status: str) -> None:
        """Tell everybody where an operation has ended."""
        for reporter in tuple(self._reporters):
            try:
                reporter.update_fdu_status(fdu, instance, status)
            except Exception:  # noqa: BLE001 (told in the log)
                self._fault(reporter)

    def write_fdu_error(self, fdu: str, instance: str, code: int, message: str) -> None:
        """Tell everybody of a failed operation."""
        for reporter in tuple(self._reporters):
            try:
                reporter.write_fdu_error(fdu, instance, code, message)
            except Exception:  # noqa: BLE001 (told in the log)
                self._fault(reporter)

    @staticmethod
    def _fault(reporter: Reporter) -> None:
        LOGGER.log(logging.ERROR, "%s could not take a report", type(reporter).__name__,
                   exc_info=True)  # fmt: skip
