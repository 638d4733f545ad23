"""Which shared library a program misses, by reading what ld.so(8) would read.

A library counts as missing only where none of the places has it, the loader's cache
included; so what is told is true, and what cannot be decided is not told.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from nativert.runtime import diagnosis_elf as elf
from nativert.runtime.diagnosis_root import Root

_MAX_FILES: Final = 512
_MAX_CACHE_BYTES: Final = 8 << 20
_MAX_CONF_BYTES: Final = 64 << 10
_MAX_CONF_DEPTH: Final = 4
_TRIPLETS: Final = {62: "x86_64-linux-gnu", 183: "aarch64-linux-gnu"}
_GLIBC_SAYS: Final = re.compile(
    r"^(.+?): error while loading shared libraries: [^:]+: cannot open shared object file",
    re.MULTILINE,
)
_MUSL_SAYS: Final = re.compile(
    r"^Error loading shared library [^:]+: .*\(needed by (.+?)\)$", re.MULTILINE
)


class Missing(NamedTuple):
    """A library that is nowhere, and the file that needs it."""

    library: str
    needed_by: str


def missing(root: Root, path: str, env: Mapping[str, str]) -> Missing | None:
    """Return the first library that *path* or one of its libraries needs and nothing has.

    None too where the program is not linked to any, or cannot be read.
    """
    program = _read(root, path)
    if program is None or program.interpreter is None:
        return None
    places = _Places(root, program, env)
    waiting = deque([(path, program)])
    seen = {name.rsplit("/", 1)[-1] for name in (path, program.interpreter)}
    while waiting:
        user, facts = waiting.popleft()
        own = [*_expand(facts.runpath or facts.rpath, user), *_expand(program.rpath, path)]
        for library in facts.needed:
            if library in seen or "/" in library:
                continue
            seen.add(library)
            found = places.find(library, own)
            if found is None:
                return None if places.cached(library) else Missing(library, user)
            read = _read(root, found)
            if read is not None and len(seen) < _MAX_FILES:
                waiting.append((found, read))
    return None


def accused(text: str) -> list[str]:
    """Return the programs of which a loader says in *text* that they miss a library."""
    return [match[1] for says in (_GLIBC_SAYS, _MUSL_SAYS) for match in says.finditer(text)]


def _read(root: Root, path: str) -> elf.Elf | None:
    try:
        with root.opened(path) as fd:
            return elf.read(fd)
    except (OSError, elf.DamagedElfError):
        return None


def _expand(directories: str, user: str) -> list[str]:
    origin = posixpath.dirname(user)
    return [
        part.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)
        for part in directories.split(":")
        if part
    ]


class _Places:
    """Where the loader of one program looks; read once."""

    def __init__(self, root: Root, program: elf.Elf, env: Mapping[str, str]) -> None:
        self._root = root
        self._machine = program.machine
        asked = [part for part in re.split("[:;]", env.get("LD_LIBRARY_PATH", "")) if part]
        self._directories = [*asked, *self._defaults(program)]
        preload = env.get("LD_PRELOAD", "")
        # A library that is loaded beforehand satisfies whoever needs one of its name.
        self._preloaded = {name.rsplit("/", 1)[-1] for name in re.split("[: ]", preload)}
        self._cache: bytes | None = None

    def _defaults(self, program: elf.Elf) -> Iterable[str]:
        loader = program.interpreter or ""
        if "ld-musl" in loader:
            conf = f"/etc/{posixpath.basename(loader).removesuffix('.so.1')}.path"
            text = self._root.read(conf, _MAX_CONF_BYTES).decode(errors="replace")
            return re.split("[:\n]", text) if text else ["/lib", "/usr/local/lib", "/usr/lib"]
        triplet = _TRIPLETS.get(program.machine.number, "")
        bases = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/lib32", "/usr/lib32")
        multiarch = [f"{base}/{triplet}" for base in ("/lib", "/usr/lib") if triplet]
        return [*_configured(self._root, "/etc/ld.so.conf"), *multiarch, *bases]

    def find(self, library: str, own: list[str]) -> str | None:
        """Return the path of *library*, which *own* directories may have; None if none has it."""
        if library in self._preloaded:
            return library
        for directory in (*own, *self._directories):
            for variant in self._variants(directory):
                path = f"{variant}/{library}"
                if self._fits(path):
                    return path
        return None

    def _variants(self, directory: str) -> Iterator[str]:
        yield directory
        # ld.so(8), glibc-hwcaps: builds for newer processors.
        for name in self._root.names(f"{directory}/glibc-hwcaps"):
            yield f"{directory}/glibc-hwcaps/{name}"

    def _fits(self, path: str) -> bool:
        # One for another machine is passed over by the loader, and is no library here.
        try:
            with self._root.opened(path) as fd:
                return elf.machine(os.pread(fd, 20, 0)) == self._machine
        except OSError:
            return False

    def cached(self, library: str) -> bool:
        """Whether ld.so.cache names a file for *library* that is there."""
        if self._cache is None:
            self._cache = self._root.read("/etc/ld.so.cache", _MAX_CACHE_BYTES)
        named = re.compile(rb"(/[^\0]*/" + re.escape(os.fsencode(library)) + rb"[^\0/]*)\0")
        return any(self._fits(os.fsdecode(path)) for path in named.findall(self._cache))


def _configured(root: Root, path: str, depth: int = 0) -> Iterator[str]:
    # ldconfig(8): directories, and `include` of further files.
    text = root.read(path, _MAX_CONF_BYTES).decode(errors="replace")
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["include"] and depth < _MAX_CONF_DEPTH:
            for pattern in words[1:]:
                pattern = posixpath.join("/etc", pattern)
                directory, name = posixpath.split(pattern)
                for entry in fnmatch.filter(root.names(directory), name):
                    yield from _configured(root, f"{directory}/{entry}", depth + 1)
        else:
            yield from (word for word in words if word.startswith("/"))
