"""The C parts that set an instance up, called in the process of a test, or in its child.

Errors come as OSError with errno, text and path, or as ValueError where no call failed.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_long, c_ulong

from native_init import library

from nativert.launcher.plan import Step

_HELD = ("user", "uts", "ipc", "net")


@functools.cache
def _native() -> ctypes.CDLL:
    native = ctypes.CDLL(str(library("drive_rootfs")))
    for name, *types in (
        ("drive_open", c_int, c_char_p),
        ("drive_make", c_int, c_char_p, c_int),
        ("drive_bind", c_char_p, c_int, c_char_p, c_ulong, c_int),
        ("drive_attach", c_char_p, c_int, c_char_p, c_char_p, c_ulong),
        ("drive_build", c_char_p, c_char_p, c_long),
        ("drive_finish", c_char_p, c_int, c_int),
        ("drive_namespaces", c_long, c_long, c_int, c_int * len(_HELD), ctypes.POINTER(c_int)),
        ("drive_join", c_int * len(_HELD)),
        ("drive_loopback",),
        ("drive_allow", c_long, c_long),
    ):
        native[name].argtypes = tuple(types)
    native.told_text.restype = native.told_path.restype = c_char_p
    return native


def _checked(result: int) -> int:
    if result >= 0:
        return result
    native = _native()
    number, text, path = native.told_number(), native.told_text(), native.told_path()
    if not number:
        raise ValueError(text.decode())
    raise OSError(number, text.decode(), None if path is None else os.fsdecode(path))


def load() -> None:
    """Compile and load: here, and not anew in each child of a test, where it would show."""
    _native()


def set_kernel(kernel: tuple[int, int]) -> None:
    """Have mounts made as on Linux *kernel*."""
    ctypes.c_bool.in_dll(_native(), "may_set_attributes").value = kernel >= (5, 12)


def open_target(root: int, path: str) -> int:
    return _checked(_native().drive_open(root, os.fsencode(path)))


def make_target(root: int, path: str, *, directory: bool) -> int:
    return _checked(_native().drive_make(root, os.fsencode(path), directory))


def bind(source: str, root: int, target: str, flags: int = 0, *, recursive: bool = True) -> None:
    names = os.fsencode(source), root, os.fsencode(target)
    _checked(_native().drive_bind(*names, flags, recursive))


def attach(source: str, root: int, target: str, fstype: str, flags: int) -> None:
    names = source.encode(), root, os.fsencode(target), fstype.encode()
    _checked(_native().drive_attach(*names, flags))


def build(new_root: str, steps: Sequence[Step], *, shm_bytes: int) -> int:
    text = ctypes.create_string_buffer(json.dumps(steps).encode())
    return _checked(_native().drive_build(os.fsencode(new_root), text, shm_bytes))


def finish(new_root: str, root: int, *, own_network: bool) -> None:
    _checked(_native().drive_finish(os.fsencode(new_root), root, own_network))


def create_namespaces(id_base: int, id_count: int, *, network: bool) -> dict[str, int]:
    held = (c_int * len(_HELD))()
    helper = c_int(0)
    result = _native().drive_namespaces(id_base, id_count, network, held, ctypes.byref(helper))
    if helper.value:
        os.waitpid(helper.value, 0)
    _checked(result)
    return {name: fd for name, fd in zip(_HELD, held, strict=True) if fd >= 0}


def loopback_up() -> None:
    _checked(_native().drive_loopback())


def allow_unprivileged_network(id_base: int, id_count: int) -> None:
    _checked(_native().drive_allow(id_base, id_count))


def join(held: dict[str, int]) -> None:
    fds = (c_int * len(_HELD))(*(held.get(name, -1) for name in _HELD))
    _checked(_native().drive_join(fds))
