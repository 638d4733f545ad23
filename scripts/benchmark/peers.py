"""crun, runc and bwrap: the same operations by their commands."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmark import oci

_WORKER = Path(__file__).with_name("peer_worker.py")
_CGROUPS = Path("/sys/fs/cgroup")
_REMOVE_TIMEOUT_S = 5.0


class Worker:
    """The process that runs the peers' commands, so that ours keeps its mount namespace."""

    def __init__(self) -> None:
        self._number = 0
        self._process = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", sys.executable, "-S", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # What a terminal sends to the foreground is for the bench, which still needs it.
            start_new_session=True,
        )

    def measure(self, argv: list[str], *, gone: int | None = None, check: bool = True) -> float:
        """Run one command and return what it took in microseconds."""
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("made with pipes")
        self._number += 1
        request = {"number": self._number, "argv": argv, "gone": gone}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = {}
        # After an interrupt the answer to an earlier request may still be on its way.
        while answer.get("number") != self._number:
            line = self._process.stdout.readline()
            if not line:
                raise EOFError("the peers' worker has ended")
            answer = json.loads(line)
        if check and answer["code"] != 0:
            raise RuntimeError(f"{' '.join(argv)}: {answer['stderr'] or answer['code']}")
        return float(answer["us"])

    def close(self) -> None:
        """End it, and the mount namespace with it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


class OciPeer:
    """crun or runc with one bundle; one container at a time is under measurement."""

    def __init__(
        self, name: str, worker: Worker, directory: Path, application: Path, *, full: bool
    ) -> None:
        self.name = name
        self._worker = worker
        self._tag = f"nativert-bench-{os.getpid()}-{name}"
        self._state = directory / f"{name}-state"
        self._pid_file = directory / f"{name}.pid"
        cgroup = f"/{self._tag}/instance"
        where = directory / name
        self._bundle = oci.make_bundle(where / "stays", application, cgroup=cgroup, full=full)
        self._ending = oci.make_bundle(
            where / "ends", application, cgroup=cgroup, argument="true", full=full
        )
        self._many = where
        self._application, self._full = application, full
        self._turn = 0
        self._id = f"bench-{os.getpid()}"
        self._ids: list[str] = []
        self.operations: dict[str, Callable[[], float]] = {
            "configure": self._create,
            "run": lambda: self._call("start", self._id),
            "pause": lambda: self._call("pause", self._id),
            "resume": lambda: self._call("resume", self._id),
            "scale": self._update,
            "exec": lambda: self._call("exec", self._id, "/bin/true"),
            "stop": self._stop,
            "clean": lambda: self._call("delete", self._id),
            "whole": lambda: self._call("run", "--bundle", str(self._ending), f"{self._id}-whole"),
        }

    def _argv(self, *words: str) -> list[str]:
        return [self.name, "--root", str(self._state), *words]

    def _call(self, *words: str) -> float:
        return self._worker.measure(self._argv(*words))

    def _create(self) -> float:
        bundle, pid = str(self._bundle), str(self._pid_file)
        return self._call("create", "--bundle", bundle, "--pid-file", pid, self._id)

    def _update(self) -> float:
        self._turn ^= 1
        limits = ("--memory", str((96 + self._turn) << 20), "--cpu-quota", str(50_000 + self._turn))
        return self._call("update", *limits, "--pids-limit", str(60 + self._turn), self._id)

    def _stop(self) -> float:
        pid = int(self._pid_file.read_text())
        return self._worker.measure(self._argv("kill", self._id, "TERM"), gone=pid)

    def start_another(self, number: int) -> float:
        """Create and start one more container, in a bundle of its own."""
        id_ = f"{self._id}-{number}"
        bundle = oci.make_bundle(
            self._many / id_, self._application, cgroup=f"/{self._tag}/{id_}", full=self._full
        )
        self._ids.append(id_)
        return self._call("run", "--detach", "--bundle", str(bundle), id_)

    def reset(self) -> None:
        """Remove every container, whatever state it is in."""
        for id_ in (self._id, f"{self._id}-whole", *self._ids):
            if (self._state / id_).exists():
                self._worker.measure(self._argv("delete", "--force", id_), check=False)
        self._ids.clear()

    def close(self) -> None:
        """Remove everything that is theirs on the host."""
        self.reset()
        for hierarchy in _CGROUPS.iterdir():
            parent = hierarchy / self._tag
            for path in (*sorted(parent.glob("**/*/"), reverse=True), parent):
                _remove_cgroup(path)


def _remove_cgroup(path: Path) -> None:
    # Busy until the kernel has finished with the dead that were in it.
    deadline = time.monotonic() + _REMOVE_TIMEOUT_S
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError as e:
            if e.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


class Bwrap:
    """bubblewrap, which has one operation: all of it at once."""

    name = "bwrap"

    def __init__(self, worker: Worker, application: Path) -> None:
        argv = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session"]
        for name in ("usr", "etc", "opt"):
            argv += ["--ro-bind", f"/{name}", f"/{name}"]
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            path = Path("/") / name
            if path.is_symlink():
                argv += ["--symlink", os.readlink(path), str(path)]
            elif path.exists():
                argv += ["--ro-bind", str(path), str(path)]
        argv += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run"]
        argv += ["--ro-bind", str(application.parent), "/bench", "/bench/app", "true"]
        self.operations: dict[str, Callable[[], float]] = {"whole": lambda: worker.measure(argv)}

    def reset(self) -> None:
        """Nothing of it stays after its command."""

    def close(self) -> None:
        """Nothing of it stays after its command."""


Peer = OciPeer | Bwrap


def make_peers(worker: Worker, directory: Path, application: Path, *, full: bool) -> list[Any]:
    """Return the peers, each with its bundle."""
    return [
        OciPeer("crun", worker, directory, application, full=full),
        OciPeer("runc", worker, directory, application, full=full),
        Bwrap(worker, application),
    ]
