"""The filter, loaded: what the kernel refuses, and that ordinary programs run under it."""

from __future__ import annotations

import json
import platform
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
import scale

from nativert.isolation import seccomp

pytestmark = pytest.mark.root

LOADER = str(Path(__file__).with_name("load_filter.py"))

PROBES = """
import ctypes, errno, fcntl, json, os, pty, socket, stat, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
answers = {}

def ask(name, call, *args):
    ctypes.set_errno(0)
    result = call(*args)
    answers[name] = errno.errorcode[ctypes.get_errno()] if result == -1 else "done"

def attempt(name, call, *args):
    try:
        call(*args)
        answers[name] = "done"
    except OSError as e:
        answers[name] = errno.errorcode[e.errno]

CLONE_NEWUSER, CLONE_FILES = 0x10000000, 0x400
ask("unshare user", libc.unshare, CLONE_NEWUSER)
ask("unshare files", libc.unshare, CLONE_FILES)
ask("clone3", libc.syscall, ctypes.c_long(435), None, ctypes.c_size_t(0))
ask("newer than the table", libc.syscall, ctypes.c_long(500))
ask("mseal", libc.syscall, ctypes.c_long(462), None, ctypes.c_size_t(0), ctypes.c_ulong(0))
ask("io_uring", libc.syscall, ctypes.c_long(425), 1, None)
ask("pidfd_getfd", libc.syscall, ctypes.c_long(438), -1, 0, 0)
ask("chroot", libc.chroot, b"/")
ask("umount", libc.umount2, b"/nonexistent", 0)
ask("setns", libc.setns, -1, 0)
ask("personality 0x40000", libc.personality, ctypes.c_ulong(0x40000))
ask("personality query", libc.personality, ctypes.c_ulong(0xFFFFFFFF))
ask("ptrace", libc.ptrace, 0, 0, None, None)
for family in ("AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET"):
    attempt(family, lambda: socket.socket(getattr(socket, family), socket.SOCK_RAW
            if family in ("AF_NETLINK", "AF_PACKET") else socket.SOCK_STREAM).close())
attempt("AF_ALG", lambda: socket.socket(38, socket.SOCK_SEQPACKET).close())
attempt("AF_VSOCK", lambda: socket.socket(40, socket.SOCK_STREAM).close())
where = sys.argv[1]
attempt("mknod char", os.mknod, where + "/null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
attempt("mknod fifo", os.mknod, where + "/fifo", stat.S_IFIFO | 0o600)
master, slave = os.openpty()
libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
window = ctypes.create_string_buffer(8)
for request in (0x5412, 0x1_0000_5412, 0x541C, 0x1_0000_541C):
    ask(f"ioctl {request:#x}", libc.ioctl, slave, request, window)
ask("ioctl TIOCGWINSZ", libc.ioctl, slave, 0x5413, window)
thread = threading.Thread(target=lambda: answers.update(thread="done"))
thread.start()
thread.join()
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def filter_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a compiled filter."""
    return seccomp.cached(tmp_path_factory.mktemp("seccomp"))


def filtered(filter_file: Path, argv: Sequence[str]) -> list[str]:
    """Return the argv that runs *argv* under the filter."""
    return [sys.executable, LOADER, str(filter_file), *argv]


def run(filter_file: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        filtered(filter_file, argv),
        capture_output=True,
        text=True,
        timeout=scale.LONG_S,
        check=False,
    )


def test_what_the_kernel_answers(filter_file: Path, tmp_path: Path) -> None:
    done = run(filter_file, sys.executable, "-c", PROBES, str(tmp_path))
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    # Linux 6.10 has it; what matters is that the filter lets it through.
    assert answers.pop("mseal") in ("done", "ENOSYS")
    assert answers == {
        "unshare user": "EPERM",
        "unshare files": "done",
        "clone3": "ENOSYS",
        "newer than the table": "ENOSYS",
        "io_uring": "EPERM",
        "pidfd_getfd": "EPERM",
        "chroot": "EPERM",
        "umount": "EPERM",
        "setns": "EPERM",
        "personality 0x40000": "EPERM",
        "personality query": "done",
        "ptrace": "EPERM",
        "AF_UNIX": "done",
        "AF_INET": "done",
        "AF_INET6": "done",
        "AF_NETLINK": "done",
        "AF_PACKET": "EPERM",
        "AF_ALG": "EPERM",
        "AF_VSOCK": "EPERM",
        "mknod char": "EPERM",
        "mknod fifo": "done",
        "ioctl 0x5412": "EPERM",
        "ioctl 0x100005412": "EPERM",
        "ioctl 0x541c": "EPERM",
        "ioctl 0x10000541c": "EPERM",
        "ioctl TIOCGWINSZ": "done",
        "thread": "done",
    }


X32 = "import ctypes; print(ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 | 39)))"
I386 = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
# push rbx; mov eax, 20 (getpid); int 0x80; pop rbx; ret
page.write(bytes.fromhex("53 b8 14 00 00 00 cd 80 5b c3"))
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
print(ctypes.CFUNCTYPE(ctypes.c_int)(address)())
"""


@pytest.mark.parametrize("program", [X32, I386], ids=["x32", "i386"])
def test_a_foreign_abi_kills_the_process(filter_file: Path, program: str) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("x86-64 only")
    done = run(filter_file, sys.executable, "-c", program)
    assert done.returncode == -signal.SIGSYS, (done.stdout, done.stderr)


def test_the_filter_is_inherited_and_counted(filter_file: Path) -> None:
    done = run(filter_file, "grep", "-E", "^Seccomp(_filters)?:", "/proc/self/status")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["Seccomp:", "2"],
        ["Seccomp_filters:", "1"],
    ]


PYTHON = """
    import asyncio, concurrent.futures, mmap, multiprocessing, os, pathlib, socket, sqlite3
    import subprocess, tempfile, threading

    async def echo():
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        reader, _ = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b""
        server.close()

    asyncio.run(echo())
    assert subprocess.run(["sh", "-c", "exit 3"]).returncode == 3
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(len, ["a", "bc"])) == 3
    with tempfile.TemporaryDirectory() as d:
        sqlite3.connect(d + "/x").execute("create table t(a)")
    try:
        socket.getaddrinfo("localhost", 80)
    except socket.gaierror:
        pass  # A small host has no /etc/hosts; how it was looked for is what counts.
    print("ran")
"""
NODE = """
    const {Worker} = require("worker_threads"), fs = require("fs"), http = require("http");
    const {execFileSync} = require("child_process");
    execFileSync("true");
    fs.readFileSync("/proc/self/status");
    const server = http.createServer((q, r) => r.end("ok")).listen(0, "127.0.0.1", () =>
      http.get({port: server.address().port}, r => r.on("data", () => {}).on("end", () =>
        new Worker("console.log('ran')", {eval: true}).on("exit", () => process.exit(0)))));
"""


PROGRAMS = {
    "python": ([sys.executable, "-c", textwrap.dedent(PYTHON)], "ran"),
    "sh": (["sh", "-c", "mkfifo $0/f && (echo ran > $0/f &) && cat $0/f", "@"], "ran"),
    "nginx": (["nginx", "-t", "-c", "@/nginx.conf", "-p", "@", "-e", "stderr"], ""),
}
# Nothing of ours needs these; where they are, they are asked.
PROGRAMS |= {
    name: (argv, output)
    for name, argv, output in (
        ("node", ["node", "-e", NODE], "ran"),
        ("java", ["java", "-Xmx64m", "-XshowSettings:system", "-version"], ""),
    )
    if shutil.which(name)
}


@pytest.mark.apps
@pytest.mark.parametrize(("argv", "output"), PROGRAMS.values(), ids=PROGRAMS)
def test_programs_run(filter_file: Path, tmp_path: Path, argv: list[str], output: str) -> None:
    (tmp_path / "nginx.conf").write_text("pid nginx.pid; events {} http { access_log off; }")
    done = run(filter_file, *(word.replace("@", str(tmp_path)) for word in argv))
    assert done.returncode == 0, done.stderr
    assert output in done.stdout


def test_redis_serves(filter_file: Path, tmp_path: Path) -> None:
    """Threads, sockets, fsync and a clean end of a real server."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    listener = tmp_path / "redis.sock"
    argv = ["redis-server", "--port", "0", "--unixsocket", str(listener), "--dir", str(tmp_path)]
    server = subprocess.Popen(
        filtered(filter_file, argv), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert server.stdout is not None
        # redis writes this line once its socket listens; end of file if it died.
        for line in server.stdout:
            if "accept connections" in line:
                break
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(scale.LONG_S)
            client.connect(str(listener))
            client.sendall(b"PING\r\nSET k v\r\nSAVE\r\n")
            answer = b""
            while answer.count(b"\r\n") < 3:
                chunk = client.recv(64)
                assert chunk, answer
                answer += chunk
        assert answer == b"+PONG\r\n+OK\r\n+OK\r\n"
        server.terminate()
        server.communicate(timeout=scale.LONG_S)
        assert server.returncode == 0
    finally:
        server.kill()
        server.communicate()
