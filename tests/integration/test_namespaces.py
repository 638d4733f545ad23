"""The namespaces of an instance: whose they are, how ids map, what is set up in them."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator

import native_rootfs as namespaces
import pytest
import scale
from forked import run_forked

from nativert.isolation.syscalls import CLONE_NEWNET, CLONE_NEWUSER, setns

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True, scope="module")
def native() -> None:
    namespaces.load()


ID_BASE = 0x7100_0000
ID_COUNT = 65536
# linux/nsfs.h
NS_GET_USERNS = 0xB701
SIOCGIFFLAGS = 0x8913
IFF_UP = 1


@pytest.fixture
def held() -> Iterator[dict[str, int]]:
    made = namespaces.create_namespaces(ID_BASE, ID_COUNT, network=True)
    yield made
    for fd in made.values():
        os.close(fd)


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino


def test_all_are_new_and_belong_to_the_new_user_namespace(held: dict[str, int]) -> None:
    assert set(held) == {"user", "net", "uts", "ipc"}
    for name, fd in held.items():
        assert inode(fd) != os.stat(f"/proc/self/ns/{name}").st_ino
        assert not os.get_inheritable(fd)
    for name in ("net", "uts", "ipc"):
        owner = fcntl.ioctl(held[name], NS_GET_USERNS)
        assert inode(owner) == inode(held["user"]), name
        os.close(owner)
    parent = fcntl.ioctl(held["user"], NS_GET_USERNS)
    assert inode(parent) == os.stat("/proc/self/ns/user").st_ino
    os.close(parent)


def test_a_shared_network_leaves_out_only_the_network() -> None:
    made = namespaces.create_namespaces(ID_BASE, ID_COUNT, network=False)
    assert set(made) == {"user", "uts", "ipc"}
    for fd in made.values():
        os.close(fd)


def test_ids_map_to_the_given_range(held: dict[str, int]) -> None:
    def body() -> tuple[str, str, int, int]:
        setns(held["user"], CLONE_NEWUSER)
        os.setresgid(7, 7, 7)
        os.setresuid(1000, 1000, 1000)
        with open("/proc/self/uid_map") as uids, open("/proc/self/gid_map") as gids:
            return uids.read(), gids.read(), os.getuid(), os.getgid()

    uids, gids, uid, gid = run_forked(body)
    assert uids.split() == gids.split() == ["0", str(ID_BASE), str(ID_COUNT)]
    assert (uid, gid) == (1000, 7)

    def host_side() -> None:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            setns(held["user"], CLONE_NEWUSER)
            os.setresuid(1000, 1000, 1000)
            os.write(writer, b".")
            os.read(os.pipe()[0], 1)
        os.read(reader, 1)
        with open(f"/proc/{pid}/status") as status:
            line = next(line for line in status if line.startswith("Uid:"))
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        assert set(line.split()[1:]) == {str(ID_BASE + 1000)}

    run_forked(host_side)


def test_ids_outside_of_the_range_are_refused(held: dict[str, int]) -> None:
    def body() -> None:
        setns(held["user"], CLONE_NEWUSER)
        os.setresuid(ID_COUNT - 1, ID_COUNT - 1, ID_COUNT - 1)

    run_forked(body)

    def beyond() -> None:
        setns(held["user"], CLONE_NEWUSER)
        with pytest.raises(OSError, match="Invalid argument"):
            os.setresuid(ID_COUNT, ID_COUNT, ID_COUNT)

    run_forked(beyond)


def reap_all() -> None:
    """Reap what `create` left dead; one that lived would hold this for ever."""
    with pytest.raises(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def test_a_map_that_the_kernel_refuses_leaves_no_descriptor_and_no_process() -> None:
    def body() -> None:
        before = os.listdir("/proc/self/fd")
        for base, count in ((ID_BASE, 0), (1 << 32, 10), (0, 10), (-5, 10)):
            with pytest.raises(OSError):
                namespaces.create_namespaces(base, count, network=True)
        assert os.listdir("/proc/self/fd") == before
        reap_all()

    run_forked(body)


def test_no_descriptors_and_no_processes_are_left_by_many() -> None:
    def body() -> None:
        before = os.listdir("/proc/self/fd")
        for _ in range(30):
            for fd in namespaces.create_namespaces(ID_BASE, ID_COUNT, network=True).values():
                os.close(fd)
        assert os.listdir("/proc/self/fd") == before
        reap_all()

    run_forked(body)


def interface_flags(name: bytes) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sH14x", name, 0))
    return int(struct.unpack_from("H", answer, 16)[0])


def test_loopback_comes_up_and_only_in_the_instance(held: dict[str, int]) -> None:
    def body() -> None:
        namespaces.join(held)
        assert not interface_flags(b"lo") & IFF_UP
        namespaces.loopback_up()
        assert interface_flags(b"lo") & IFF_UP
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=scale.LONG_S).close()

    run_forked(body)


def test_low_ports_and_echo_need_no_capability(held: dict[str, int]) -> None:
    def body() -> None:
        namespaces.join(held)
        namespaces.loopback_up()
        namespaces.allow_unprivileged_network(ID_BASE, ID_COUNT)
        setns(held["user"], CLONE_NEWUSER)
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        with socket.create_server(("127.0.0.1", 80)):
            pass
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as ping:
            ping.settimeout(scale.LONG_S)
            ping.sendto(b"\x08\x00\x00\x00\x00\x00\x00\x01", ("127.0.0.1", 0))
            assert ping.recv(64)[0] == 0

    run_forked(body)


def test_the_host_keeps_its_own_limit_of_ports(held: dict[str, int]) -> None:
    def read() -> str:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
            return file.read()

    before = read()

    def body() -> None:
        namespaces.join(held)
        namespaces.allow_unprivileged_network(ID_BASE, ID_COUNT)
        assert read() == "0\n"

    run_forked(body)
    assert read() == before


def test_joining_leaves_the_user_namespace(held: dict[str, int]) -> None:
    def body() -> None:
        namespaces.join(held)
        assert os.stat("/proc/self/ns/net").st_ino == inode(held["net"])
        assert os.stat("/proc/self/ns/uts").st_ino == inode(held["uts"])
        assert os.stat("/proc/self/ns/user").st_ino != inode(held["user"])
        socket.sethostname("inside")
        assert socket.gethostname() == "inside"

    before = socket.gethostname()
    run_forked(body)
    assert socket.gethostname() == before


def test_a_network_namespace_of_another_owner_can_be_refused(held: dict[str, int]) -> None:
    """Root of the instance's user namespace has no right over the host's network."""

    def body() -> None:
        host = os.open("/proc/self/ns/net", os.O_RDONLY)
        setns(held["user"], CLONE_NEWUSER)
        with pytest.raises(PermissionError):
            setns(host, CLONE_NEWNET)
        setns(held["net"], CLONE_NEWNET)

    run_forked(body)
