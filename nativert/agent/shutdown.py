"""The end of the host: every instance hears its stop signal and has its grace.

Called by nativert-shutdown.service when it is stopped, and without systemd by whatever the host
has for that, as `python -m nativert.agent.shutdown --now`. What is wanted of the instances stays:
those with `native.autostart` run again after the boot.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from nativert.agent.logs import LOGGER, configure
from nativert.runtime.node import Node
from nativert.runtime.supervision.supervisor import Supervisor
from nativert.store.paths import Paths

_ASK_TIMEOUT_S = 10.0


def host_goes_down() -> bool:
    """Tell whether systemd is shutting the host down; see is-system-running in systemctl(1)."""
    # Not by the bus: systemctl reaches systemd itself, which answers to the last.
    done = subprocess.run(
        ["systemctl", "is-system-running"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_ASK_TIMEOUT_S,
        check=False,
    )
    return done.stdout.strip() == "stopping"


def stop_instances(root: Path | None) -> bool:
    """Stop what runs on the node of *root*; False if something could not be stopped."""
    if not Paths(root).database.exists():
        return True  # No node: none is made at the very end.
    with Node(root) as node:
        rows = [row for row in node.list() if row.state in ("RUNNING", "PAUSED")]
        LOGGER.info("the node shuts down: stopping %d instances", len(rows))
        try:
            Supervisor(node).stop_all()
        except ExceptionGroup as group:
            for error in group.exceptions:
                LOGGER.error("%s", error)
            return False
    LOGGER.info("the node is shut down")
    return True


def main() -> None:
    """Stop all if the host goes down, or at once with --now."""
    arguments = sys.argv[1:]
    if arguments not in ([], ["--now"]):
        raise SystemExit("usage: python -m nativert.agent.shutdown [--now]")
    configure("info")
    if arguments or host_goes_down():
        raise SystemExit(not stop_instances(None))


if __name__ == "__main__":
    main()
