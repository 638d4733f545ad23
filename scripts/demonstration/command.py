"""What `scripts/demo` shows, by the real command line; exit code 1 if anything is not as told."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from traces import Traces
from web import GREEDY, NGINX, WEB, free_port, get, get_soon, load

NATIVERT = Path(sys.executable).with_name("nativert")
CPU_CORES = 0.4
ROUNDS = 5
# How often the share of the CPU is measured, until the limit is what bounds it.
WINDOWS = 4


class Stopped(BaseException):
    """A signal asked for the end."""


class UnexpectedError(Exception):
    """What was expected and what was found, where going on is of no use."""


@dataclass(frozen=True)
class Share:
    """What web had of the CPU: cores, the part of the time in which the limit held it, pages/s."""

    cores: float
    throttled: float
    pages: float


class Demo:
    """One run: what is shown, what it took, what was not as expected."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.root = work / "node"
        self.site = work / "site"
        self.failures: list[str] = []
        self.took_ms: dict[str, float] = {}
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.environment = os.environ | {"NATIVERT_ROOT": str(self.root), "COLUMNS": "100"}
        self.environment.pop("NATIVERT_KERNEL", None)
        # Where this is not the host's own mount or network namespace (a chroot with mounts of
        # its own, a container), a throw-away node may as well live here.
        self.here = any(not same_namespace(name) for name in ("mnt", "net"))
        self.command = [str(NATIVERT), *(["--here"] if self.here else [])]
        self.port = free_port()

    # -- what the reader sees ----------------------------------------------------------

    def style(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.colour else text

    def heading(self, text: str) -> None:
        print(f"\n{self.style('1', text)}")

    def say(self, text: str, note: str = "") -> None:
        print(f"  {text}{'  ' + self.style('2', note) if note else ''}", flush=True)

    def expect(self, ok: bool, what: str, found: object = "") -> None:
        if not ok:
            text = f"expected {what}{f', found {found}' if found != '' else ''}"
            self.failures.append(text)
            self.say(self.style("31;1", f"FAILED: {text}"))

    # -- commands ----------------------------------------------------------------------

    def call(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *arguments],
            env=self.environment,
            cwd=self.work,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def run(self, *arguments: str, code: int = 0, show: bool = True) -> str:
        """Run a command as it is typed, show its output, remember what it took."""
        print(f"  {self.style('36', '$ nativert ' + shlex.join(arguments))}", flush=True)
        began = time.monotonic()
        done = self.call(*arguments)
        elapsed_ms = (time.monotonic() - began) * 1000
        if code == 0:
            self.took_ms.setdefault(arguments[0], elapsed_ms)
        output = done.stdout + done.stderr
        if show or done.returncode != code:
            for line in output.rstrip().splitlines():
                self.say(f"  {line}")
        if done.returncode != code:
            # What follows would only repeat it.
            raise UnexpectedError(f"exit code {code} of nativert {arguments[0]}", done.returncode)
        return output

    def record(self) -> dict[str, object]:
        record: dict[str, object] = json.loads(self.call("-o", "json", "inspect", "web").stdout)
        return record

    # -- the parts ---------------------------------------------------------------------

    def prepare(self) -> None:
        self.site.mkdir()
        (self.site / "index.html").write_text("hello from an FDU\n")
        (self.site / "nginx.conf").write_text(NGINX)
        words = [f"{n:x}" for n in range(4096)]
        text = " ".join(random.Random(1).choices(words, k=300_000))
        (self.site / "big.txt").write_text(text)
        web = WEB.format(site=self.site, port=self.port, cores=CPU_CORES)
        (self.work / "web.yaml").write_text(web)
        (self.work / "greedy.yaml").write_text(GREEDY)

    def start(self) -> None:
        self.heading("1. A web server becomes an instance")
        for line in (self.work / "web.yaml").read_text().splitlines():
            self.say(self.style("2", f"  {line}"))
        self.run("define", "web.yaml")
        self.run("configure", "web")
        self.run("start", "web")
        self.run("ps")

    def reach(self) -> str:
        self.heading("2. It answers on a network of its own")
        native = self.record()["native"]
        address = str(native["interfaces"][0]["address"])  # type: ignore[index]
        for host, port, what in (
            (address, 80, "its own address"),
            ("127.0.0.1", self.port, "the published port"),
        ):
            status, body, elapsed_ms = get_soon(host, port)
            answer = f"GET http://{host}:{port}/".ljust(32)
            self.say(f"{answer} {status} {body!r} in {elapsed_ms:.1f} ms", what)
            self.expect((status, body) == (200, "hello from an FDU"), "200 and the page", status)
        inside = self.run("exec", "web", "--", "sh", "-c", "id; hostname; ls -d /proc/[0-9]*")
        self.expect("uid=1000" in inside and "\nweb\n" in inside, "uid 1000 in a host of its own")
        return address

    def pause(self) -> None:
        self.heading("3. Pause: requests hang. Resume: they are answered")
        self.run("pause", "web")
        answer: list[tuple[int, str, float]] = []
        request = threading.Thread(target=lambda: answer.append(get("127.0.0.1", self.port, 30)))
        request.start()
        request.join(1.0)
        self.say(f"GET http://127.0.0.1:{self.port}/   no answer for 1 s")
        self.expect(not answer, "no answer while paused", answer)
        refused = self.run("stop", "web", code=4)
        self.expect("resume" in refused, "a refusal that names what is allowed", refused)
        self.run("resume", "web")
        request.join(10)
        self.expect(bool(answer) and answer[0][0] == 200, "an answer after resume", answer)
        if answer:
            self.say(
                f"the same request: {answer[0][0]} {answer[0][1]!r} after {answer[0][2]:.0f} ms"
            )

    def scale(self) -> None:
        self.heading("4. Half the CPU, under load")
        half = CPU_CORES / 2
        with load("127.0.0.1", self.port) as count:
            self.judge(CPU_CORES, count)
            self.run("scale", "--cpu", f"{half:g}", "web")
            self.judge(half, count)
        limits = self.record()["native"]["limits"]  # type: ignore[index]
        self.expect(limits["cpu_max"] == half, f"the limit {half:g}", limits["cpu_max"])

    def judge(self, limit: float, count: Callable[[], int]) -> None:
        """Compare the cores that web uses with its limit.

        Never more. Less only as far as the host has no more to give, which the kernel tells: who
        could have had more is throttled, at its limit, for the rest of the time.
        """
        for _ in range(WINDOWS):
            seen = self.share(count)
            self.say(
                f"limit {limit:.2f} cores: uses {seen.cores:.2f}, {seen.pages:5.1f} pages/s",
                f"throttled for {seen.throttled:.0%} of the time",
            )
            least = 0.6 * limit * min(1.0, seen.throttled / (1 - limit))
            if not least <= seen.cores < 1.15 * limit:
                self.expect(False, f"about {limit:g} cores", f"{seen.cores:.2f}")
                return
            if seen.throttled > 0:
                return
        self.say(self.style("33", "the host was too busy to give it what the limit allows"))

    def share(self, count: Callable[[], int]) -> Share:
        """Measure over two seconds."""
        watch = subprocess.Popen(
            [*self.command, "-o", "json", "stats", "--watch", "2", "web"],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # That it was interrupted.
            text=True,
        )
        try:
            assert watch.stdout is not None
            # Since the start; the next one since this one.
            first = json.loads(watch.stdout.readline())
            before, began = count(), time.monotonic()
            figures = json.loads(watch.stdout.readline())
            served, elapsed_s = count() - before, time.monotonic() - began
        finally:
            watch.send_signal(signal.SIGINT)
            watch.communicate()
        throttled_s = (figures["throttled_ns"] - first["throttled_ns"]) / 1e9
        return Share(
            cores=float(figures["cpu_ratio"]),
            throttled=min(1.0, throttled_s / elapsed_s),
            pages=served / elapsed_s,
        )

    def too_small(self) -> None:
        self.heading("5. A memory limit that is too small")
        for line in GREEDY.splitlines():
            self.say(self.style("2", f"  {line}"))
        # 128 + SIGKILL, as a shell would have it.
        told = self.run("run", "greedy.yaml", code=137)
        self.expect("OOM" in told and "32.0 MiB" in told, "an OOM report", told)

    def end(self) -> None:
        self.heading("6. Stop, clean, undefine")
        self.run("stop", "web")
        self.run("clean", "web")
        self.run("undefine", "web")
        self.run("gc")
        self.run("ps", "-a")

    def table(self) -> None:
        self.heading("7. What each operation took")
        began = time.monotonic()
        self.call("version")
        bare_ms = (time.monotonic() - began) * 1000
        called = self.rounds()
        print("  operation      command   the runtime's own call")
        for verb, name in OPERATIONS:
            print(f"  {verb:<12} {self.took_ms[verb]:6.0f} ms {called[name]:14.2f} ms")
        self.say(
            f"Of each command {bare_ms:.0f} ms are Python and nativert starting; configure and"
        )
        self.say("clean load pyroute2 too, and the first configure starts the node's launcher.")
        self.say(f"The calls: median of {ROUNDS} in one process. stop waits for nginx to end.")

    def rounds(self) -> dict[str, float]:
        """Measure the calls that the commands make, by the facade itself."""
        from nativert.fdu import descriptor as descriptors
        from nativert.runtime.node import Node

        text = (self.work / "web.yaml").read_bytes()
        web = descriptors.decode(text, source="web.yaml")
        times: dict[str, list[float]] = {name: [] for _, name in OPERATIONS}
        with Node(self.root, here=self.here) as node:
            for turn in range(ROUNDS + 1):
                for _, name in OPERATIONS:
                    call = getattr(node, name)
                    argument: tuple[object, ...] = ("web",)
                    if name == "define":
                        argument = (web,)
                    elif name == "scale":
                        argument = ("web", {"cpu_max": CPU_CORES / 2})
                    elif name == "stop":
                        # A signal before nginx has set itself up would measure that.
                        get_soon("127.0.0.1", self.port)
                    began = time.perf_counter()
                    call(*argument)
                    # The first round makes the bridge and starts the launcher.
                    if turn:
                        times[name].append((time.perf_counter() - began) * 1000)
        return {name: statistics.median(values) for name, values in times.items()}

    def leave(self) -> None:
        """Take the node off the host; safe at any time, and twice."""
        if self.root.exists():
            rows = json.loads(self.call("-o", "json", "ps", "-a").stdout or "[]")
            for row in rows:
                self.call("rm", "--force", row["instance"])
            done = self.call("gc")
            self.expect(done.returncode == 0, "gc to remove everything", done.stdout + done.stderr)
            self.forget()
        shutil.rmtree(self.work, ignore_errors=True)

    def forget(self) -> None:
        # What `rm -r` of a root leaves to the next node on the host to notice.
        from nativert.store.claims import Claims

        with contextlib.suppress(FileNotFoundError):
            node = json.loads((self.root / "var/lib/nativert/node.json").read_text())
            Claims().release_node(node["id"])

    def nothing_left(self, traces: Traces) -> None:
        self.heading("8. What is left on the host")
        left = traces.after()
        print("                         before   while running   after")
        for kind, before, during, after in traces.rows():
            print(f"  {kind:<20} {before:8} {during:15} {after:7}")
            self.expect(after == before, f"as many {kind} as before", after)
        for line in left:
            self.say(f"left: {line}")


OPERATIONS = (
    ("define", "define"),
    ("configure", "configure"),
    ("start", "run"),
    ("pause", "pause"),
    ("resume", "resume"),
    ("scale", "scale"),
    ("stop", "stop"),
    ("clean", "clean"),
    ("undefine", "undefine"),
)


def same_namespace(name: str) -> bool:
    try:
        return os.stat(f"/proc/self/ns/{name}").st_ino == os.stat(f"/proc/1/ns/{name}").st_ino
    except OSError:
        return True


def main() -> int:
    argparse.ArgumentParser(
        prog="scripts/demo",
        description="Show a web server's life as an FDU on a throw-away node.",
    ).parse_args()

    def stop(number: int, _frame: object) -> None:
        raise Stopped(number)

    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in ends:
        signal.signal(number, stop)
    work = Path(tempfile.mkdtemp(prefix="nativert-demo-"))
    demo = Demo(work)
    traces = Traces(demo.root)
    stopped = 0
    try:
        print(f"nativert on Linux {platform.release()}, {platform.machine()}: ", end="")
        print(f"a node of its own, NATIVERT_ROOT={demo.root}")
        if demo.here:
            print("not in the host's own namespaces: every command below is called with --here")
        demo.prepare()
        demo.start()
        traces.during()
        demo.reach()
        demo.pause()
        demo.scale()
        demo.too_small()
        demo.end()
        demo.table()
    except Stopped as e:
        print("\nstopped: cleaning up", file=sys.stderr)
        stopped = 128 + int(e.args[0])
    except UnexpectedError as e:
        demo.expect(False, *e.args)
    except Exception as e:  # noqa: BLE001 - told like any other failure, after the clean-up
        demo.expect(False, "no error", repr(e))
    finally:
        for number in ends:
            signal.signal(number, signal.SIG_IGN)
        demo.leave()
    demo.nothing_left(traces)
    if demo.failures:
        print(f"\nnot as expected: {len(demo.failures)}", file=sys.stderr)
        return 1
    if stopped:
        return stopped
    print("\nEverything was as expected, and nothing is left.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
