"""The evidence of one run beside what its init wrote: kernel log, root file system, log.

Asked only where an end raises the question, and then while everything is still as it was.
"""

from __future__ import annotations

import errno
import os
import posixpath
from datetime import datetime
from typing import Any, Final

from nativert.launcher.protocol import LOG_FILE
from nativert.runtime import diagnosis, logs, program
from nativert.runtime import diagnosis_kernel as kernel
from nativert.runtime import diagnosis_libraries as libraries
from nativert.runtime.context import Context, descriptor_of
from nativert.runtime.diagnosis import Failure, Finding, Start
from nativert.runtime.diagnosis_root import Ids, Root
from nativert.runtime.users import User
from nativert.store.boot import ExitFacts, Facts
from nativert.store.durable import Row

_TAIL_BYTES: Final = 16 << 10


class Inquiry:
    """Finds evidence about the present run of one instance."""

    def __init__(self, context: Context, row: Row, facts: Facts) -> None:
        self._context = context
        self._row = row
        self._facts = facts

    # -- the kernel's log --------------------------------------------------------------

    def oom(self, ended: ExitFacts) -> kernel.Oom | None:
        """Return whose lack of memory the OOM killer acted on; None if the log is silent."""
        texts = kernel.records(ended.started_at)
        return kernel.oom_in(texts, self._facts.cgroup, self._pid())

    def system_call(self, ended: ExitFacts) -> str | None:
        """Return the name of the system call for which seccomp killed the application."""
        pid, since = self._pid(), ended.started_at
        if pid is None or since is None:
            return None
        call = kernel.seccomp(pid, since)
        return None if call is None else kernel.name_of(call)

    def init_fate(self) -> str:
        """Return what is known of how its init ended, in words; "" if nothing is."""
        facts = self._facts
        if facts.init_pid is None:
            return ""
        told = kernel.fate(kernel.records(facts.started_at), facts.init_pid)
        if told or facts.launcher_pid is None:
            return told
        gone = not os.path.exists(f"/proc/{facts.launcher_pid}")
        return "ended (so has its launcher)" if gone else ""

    def _pid(self) -> int | None:
        if self._facts.started_at is None:
            return None  # Whoever ran it did not live to note it; what stands there is older.
        pid = self._facts.details.get("pid")
        return pid if isinstance(pid, int) and pid > 0 else None

    # -- the program -------------------------------------------------------------------

    def never(self, failure: Failure, plan: Any = None) -> Finding:
        """Return why *plan* (a `launcher.plan.Program`), or the application, was not executed."""
        refused = self._refused(failure)
        return refused or diagnosis.of_start(self._root(), self._start(plan), failure)

    def _refused(self, failure: Failure) -> Finding | None:
        if failure.step not in ("run", "exec", "script") or failure.errno != errno.EAGAIN:
            return None
        cgroup = self._context.driver.open(self._facts.cgroup)
        try:
            limit, used = cgroup.read().pids_max, cgroup.usage().pids
        except OSError:
            return None
        if limit is None or used < limit:
            return None
        message = f"no process could be made: {used} of at most {limit} are there (pids.max)"
        return Finding("pids-limit", message, hint="end sessions in it, or scale --pids")

    def unstarted(self, ended: ExitFacts) -> Finding | None:
        """Return what kept a program from coming up that ended with 127, if that can be seen."""
        root = self._root()
        if root is None:
            return None
        start = self._start()
        path = self._path(root, start)
        if path is None:
            return None
        found = diagnosis.unfound_by_env(root, path, start)
        if found is not None:
            return found
        for suspect in dict.fromkeys([path, *self._accused(ended, start)]):
            missing = libraries.missing(root, suspect, start.env)
            if missing is not None:
                return _without(suspect, missing)
        return None

    def _accused(self, ended: ExitFacts, start: Start) -> list[str]:
        names = libraries.accused(self._last_words(ended))
        return [posixpath.join(start.cwd, name) for name in names if "/" in name]

    def _last_words(self, ended: ExitFacts) -> str:
        path = self._context.paths.instance_lib(self._row.uuid) / "log" / LOG_FILE
        try:
            with path.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
                records = file.read().split(b"\n")
        except OSError:
            return ""
        lines = [line for record in records if (line := logs.parse(record)) is not None]
        return "\n".join(
            line.text.decode(errors="replace")
            for line in lines
            if line.stream == "stderr" and _later(line.time, ended.started_at)
        )

    def _path(self, root: Root, start: Start) -> str | None:
        name = start.argv[0]
        if "/" in name:
            return posixpath.join(start.cwd, name)
        return diagnosis.in_path(root, name, start)

    def _root(self) -> Root | None:
        return Root.of_init(self._facts.init_pid, self._facts.init_start)

    def _start(self, plan: Any = None) -> Start:
        row, details = self._row, self._facts.details
        descriptor = descriptor_of(row.descriptor, row.name)
        if plan is not None:
            ids = Ids(row.id_range + plan.uid, row.id_range + plan.gid)
            return Start(argv=plan.argv, env=plan.env, cwd=plan.cwd, ids=ids)
        user = User(*details["user"])  # type: ignore[misc]
        env: Any = details.get("env", {})
        argv: Any = details["argv"]
        return Start(
            argv=argv,
            env=program.environment(descriptor, user, env),
            cwd=descriptor.native.workdir,
            ids=Ids(row.id_range + user.uid, row.id_range + user.gid),
        )


def _later(time: str, than: float | None) -> bool:
    try:
        return than is None or datetime.fromisoformat(time).timestamp() >= than
    except ValueError:
        return False


def _without(program: str, missing: libraries.Missing) -> Finding:
    user = "" if missing.needed_by == program else f" (for {missing.needed_by})"
    message = f"{program} needs the library {missing.library}{user}, which is nowhere in it"
    hint = "bring it in: an image, native.mounts, LD_LIBRARY_PATH in native.env"
    return Finding("missing-library", message, missing.library, hint)
