"""Locks between threads and processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import scale

from nativert.errors import Code, NativertError
from nativert.store.locks import InstanceLock, Lock, NodeLock, holder
from nativert.store.paths import Paths

UUID = "0b6f8a5e-2f8e-4d0c-9d59-0b6e0d1f1a01"

HOLD = """
import sys
from pathlib import Path
from nativert.store.locks import Lock
with Lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def hold_elsewhere(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=scale.LONG_S)


def test_a_second_object_of_the_same_thread_is_kept_out(path: Path) -> None:
    with Lock(path):
        assert not Lock(path).try_acquire()
    other = Lock(path)
    assert other.try_acquire()
    other.release()
    other.release()


def test_taking_it_twice_is_a_mistake_and_not_a_deadlock(path: Path) -> None:
    lock = Lock(path)
    with lock, pytest.raises(RuntimeError):
        lock.acquire()
    with pytest.raises(RuntimeError):
        lock.forget()


def test_another_process_is_waited_for_and_then_named(path: Path) -> None:
    process = hold_elsewhere(path)
    try:
        assert holder(path) == process.pid
        begun = time.monotonic()
        with pytest.raises(NativertError) as caught:
            Lock(path, what="web", timeout_s=0.2).acquire()
        assert time.monotonic() - begun >= 0.2
        assert caught.value.code is Code.TIMEOUT
        assert str(process.pid) in caught.value.message
        assert caught.value.message.startswith("web:")
    finally:
        end(process)
    with Lock(path, timeout_s=scale.LONG_S):
        pass


def test_the_kernel_takes_the_lock_from_a_killed_holder(path: Path) -> None:
    process = hold_elsewhere(path)
    process.kill()
    with Lock(path, timeout_s=scale.LONG_S):
        pass
    end(process)


def test_a_waiter_that_gave_up_does_not_keep_the_lock(path: Path) -> None:
    with Lock(path), pytest.raises(NativertError):
        Lock(path, timeout_s=0.01).acquire()
    # The abandoned thread may get it for a moment; it gives it back by itself.
    with Lock(path, timeout_s=scale.LONG_S):
        pass


@pytest.mark.parametrize("timeout_s", [None, 10.0])
def test_waiters_notice_that_the_file_was_removed(path: Path, timeout_s: float | None) -> None:
    inside = threading.Event()
    leave = threading.Event()

    def wait() -> None:
        with Lock(path, timeout_s=timeout_s):
            inside.set()
            leave.wait(scale.LONG_S)

    lock = Lock(path)
    lock.acquire()
    thread = threading.Thread(target=wait)
    thread.start()
    # "->" marks a waiter in /proc/locks: only then is it queued on the old file.
    deadline = time.monotonic() + 10
    inode = os.stat(path).st_ino
    while f":{inode} " not in "".join(
        line for line in Path("/proc/locks").read_text().splitlines(True) if "->" in line
    ):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    lock.forget()
    assert inside.wait(scale.LONG_S)
    # It holds the file that is there now, not the removed one.
    assert not Lock(path).try_acquire()
    leave.set()
    thread.join(scale.LONG_S)


def test_threads_exclude_each_other_and_all_get_their_turn(path: Path) -> None:
    inside = 0
    seen: list[int] = []
    turns = [0] * 4

    def work(number: int) -> None:
        nonlocal inside
        for _ in range(25):
            with Lock(path, timeout_s=scale.LONG_S):
                inside += 1
                seen.append(inside)
                turns[number] += 1
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(seen) == {1}
    assert turns == [25] * 4


def test_a_holder_that_comes_back_at_once_does_not_starve_others(path: Path) -> None:
    stop = threading.Event()

    def hog() -> None:
        while not stop.is_set():
            with Lock(path, timeout_s=scale.LONG_S):
                time.sleep(0.002)

    thread = threading.Thread(target=hog)
    thread.start()
    try:
        for _ in range(5):
            with Lock(path, timeout_s=scale.LONG_S):
                pass
    finally:
        stop.set()
        thread.join(scale.LONG_S)


def test_instance_and_node_locks_have_places_of_their_own(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.create()
    with InstanceLock(paths, UUID), NodeLock(paths, "agent", timeout_s=0.1):
        assert (paths.locks / UUID).exists()
        assert (paths.run / "agent.lock").exists()
        other = InstanceLock(paths, UUID[:-1] + "2")
        assert other.try_acquire()
        other.forget()
    assert os.listdir(paths.locks) == [UUID]


TOKEN = b"0123456789abcdef"


def kept(path: Path) -> Lock:
    lock = Lock(path)
    lock.acquire()
    lock.keep(TOKEN)
    return lock


def test_a_kept_lock_is_free_and_can_be_taken_again(path: Path) -> None:
    lock = kept(path)
    assert not lock.held
    assert not Lock(path).busy()
    assert lock.retake()
    assert lock.held
    assert Lock(path).busy()
    lock.release()


def test_a_kept_lock_that_somebody_has_held_since_is_not_taken_again(path: Path) -> None:
    lock = kept(path)
    with Lock(path):
        assert not lock.retake()
    assert not lock.held
    lock = kept(path)
    with Lock(path):
        pass
    assert not lock.retake()


def test_a_kept_lock_whose_file_has_gone_is_not_taken_again(path: Path) -> None:
    lock = kept(path)
    path.unlink()
    assert not lock.retake()
    with Lock(path):
        assert not lock.held


def test_another_keeper_takes_the_place_of_the_first(path: Path) -> None:
    first, second = kept(path), Lock(path)
    second.acquire()
    second.keep(b"another token of ")
    assert not first.retake()
    assert second.retake()
    second.release()


def test_asking_whether_it_is_busy_makes_no_file_and_leaves_what_was_kept(path: Path) -> None:
    assert not Lock(path).busy()
    assert not path.exists()
    lock = kept(path)
    assert not Lock(path).busy()
    assert lock.retake()
    lock.release()
