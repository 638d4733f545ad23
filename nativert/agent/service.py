"""The agent as a process: who may be one, its configuration, and one at a time on a node."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from nativert.agent import config as configuration
from nativert.errors import Code, NativertError
from nativert.store.locks import NodeLock, holder
from nativert.store.paths import Paths


def serve(
    root: Path | None,
    *,
    here: bool = False,
    config: Path | None = None,
    stop_all: bool = False,
    insecure: bool = False,
) -> None:
    """Serve the node until SIGTERM or SIGINT; NativertError if another agent does.

    Where only a new process helps, this one becomes it: with the same pid and arguments.
    """
    if os.geteuid() != 0:
        raise NativertError(
            "the agent needs root", code=Code.PERMISSION, hint="run it as root or with sudo"
        )
    began = time.monotonic()
    paths = Paths(root)
    source = config or paths.config
    accepted = configuration.read(source, needed=config is not None, insecure=insecure)
    paths.create()
    lock = NodeLock(paths, "agent")
    if not lock.try_acquire():
        pid = holder(lock.path)
        by = f"process {pid}" if pid else "another process"
        raise NativertError(
            f"agent: {by} serves this node already",
            hint="stop it first, or choose another node with --root",
        )
    try:
        # Only now: whoever comes second shall leave at once.
        from nativert.agent.life import run

        anew = run(
            root,
            here=here,
            source=source,
            accepted=accepted,
            stop_all=stop_all,
            insecure=insecure,
            began=began,
        )
    finally:
        lock.release()
    if anew:
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 (itself)
