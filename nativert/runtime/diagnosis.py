"""Why a program could not be executed, found by looking at what the instance sees.

Looked up when the failure is noted: the files may change later. Each sentence is something
that was seen; where nothing was, the kernel's own words stand.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from nativert.errors import Code
from nativert.runtime import diagnosis_elf as elf
from nativert.runtime.diagnosis_root import Ids, Root
from nativert.runtime.views import Fault

_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# binfmt_script(5): the kernel looks at this much of a file, and goes this deep.
_HEAD_BYTES: Final = 256
_DEPTH: Final = 5
_BRING_IN: Final = "bring in the interpreter or loader that it names, or link it statically"
_REBUILD: Final = "build it for this node, or run it on one of its kind"
_CODES: Final[dict[Fault, Code]] = {
    "not-found": Code.COMMAND_NOT_FOUND,
    "pids-limit": Code.RUN,
    "other": Code.RUN,
}


_Look = Callable[[Root, str, str], "Finding | None"]


class Finding(NamedTuple):
    """What is wrong, in one sentence, with the word of it, the file, and what mends it."""

    fault: Fault
    message: str
    path: str | None = None
    hint: str = ""

    @property
    def code(self) -> Code:
        """The code of a shell for it."""
        return _CODES.get(self.fault, Code.NOT_EXECUTABLE)


class Start(NamedTuple):
    """What was to be executed, and as whom."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    ids: Ids


class Failure(NamedTuple):
    """What init reported of it: the step, the error number, the path where there is one."""

    step: str
    errno: int
    path: str | None
    text: str


def of_start(root: Root | None, start: Start, failure: Failure) -> Finding:
    """Return why the program of *start* was not executed."""
    told = plain(failure)
    if root is None:
        return told
    try:
        if failure.step == "working directory":
            return _of_directory(root, start, failure) or told
        if failure.step == "exec":
            return _of_exec(root, start, failure) or told
    except (OSError, elf.DamagedElfError):
        pass  # It has changed meanwhile: the kernel's words are what is known.
    return told


def plain(failure: Failure) -> Finding:
    """Return what is told where nothing can be looked at: the kernel's words."""
    where = f": {failure.path}" if failure.path else ""
    message = f"{failure.step}: {failure.text}{where}"
    if failure.step != "exec":
        return Finding("other", message, failure.path)
    if failure.errno in (errno.ENOENT, errno.ENOTDIR):
        return Finding("not-found", message, failure.path)
    if failure.errno == errno.ELIBACC:
        return Finding("missing-interpreter", message, failure.path, _BRING_IN)
    return Finding("not-executable", message, failure.path)


def _of_directory(root: Root, start: Start, failure: Failure) -> Finding | None:
    hint = "native.workdir must exist inside and be enterable by the application"
    if failure.errno in (errno.ENOENT, errno.ENOTDIR):
        missing, _ = root.first_missing(start.cwd)
        why = f"{missing} is not there" if missing else "it is not a directory"
    elif failure.errno == errno.EACCES:
        # A name below it asks whether it may be entered itself.
        why = root.forbidden(f"{start.cwd}/.", start.ids) or "permission denied"
    else:
        return None
    return Finding("other", f"working directory {start.cwd}: {why}", start.cwd, hint)


def _of_exec(root: Root, start: Start, failure: Failure) -> Finding | None:
    name = start.argv[0]
    path = failure.path or name
    absolute = posixpath.join(start.cwd, path)
    if failure.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELIBACC):
        if "/" not in path:
            looked = start.env.get("PATH", _DEFAULT_PATH)
            message = f"{name}: no such program in {looked}"
            return Finding("not-found", message, name, "PATH is that of the instance")
        return _absent(root, path, absolute) or _chain(root, path, absolute, _uninterpreted)
    if failure.errno == errno.EACCES:
        ids = start.ids

        def barred(root: Root, path: str, absolute: str) -> Finding | None:
            why = root.forbidden(absolute, ids)
            hint = f"chmod +x {path}" if "no x" in why else ""
            return Finding("not-executable", f"{path}: {why}", path, hint) if why else None

        return _chain(root, path, absolute, barred)
    if failure.errno in (errno.ENOEXEC, errno.ELIBBAD, errno.EINVAL):
        return _chain(root, path, absolute, _misbuilt)
    if failure.errno == errno.ETXTBSY:
        message = f"{path}: it is open for writing, and a program that is written cannot run"
        return Finding("busy", message, path, "write it under another name, then rename it")
    return None


def _absent(root: Root, path: str, absolute: str) -> Finding | None:
    missing, target = root.first_missing(absolute)
    if not missing:
        return None
    if target:
        why = f"{missing} is a link to {target}, which is not there"
    elif missing != posixpath.normpath(absolute):
        why = f"{missing} is not there"
    else:
        why = "not there"
    return Finding("not-found", f"{path}: no such program: {why}", path)


def _chain(
    root: Root, path: str, absolute: str, look: _Look, *, depth: int = _DEPTH
) -> Finding | None:
    """Look at the program, then at what it names to run it, and so on."""
    found = look(root, path, absolute)
    if found is not None or depth == 0:
        return found
    following = interpreter(root, absolute)
    if following is None:
        return None
    deeper = _chain(root, following, following, look, depth=depth - 1)
    if deeper is None:
        return None
    return deeper._replace(message=f"{path}: its interpreter {deeper.message}")


def interpreter(root: Root, path: str) -> str | None:
    """Return the interpreter of a script or the loader of an ELF file; None if it names none."""
    head = root.read(path, _HEAD_BYTES)
    if head.startswith(b"#!"):
        # Only these two separate for the kernel: a carriage return belongs to the name.
        line = head[2:].split(b"\n")[0].replace(b"\t", b" ").strip(b" ")
        return os.fsdecode(line.split(b" ")[0]) or None
    if not head.startswith(elf.MAGIC):
        return None
    with root.opened(path) as fd:
        facts = elf.read(fd)
    return None if facts is None else facts.interpreter


def _uninterpreted(root: Root, path: str, absolute: str) -> Finding | None:
    named = interpreter(root, absolute)
    if named is None or not (missing := root.first_missing(named)[0]):
        return None
    script = root.read(absolute, 2) == b"#!"
    kind = "interpreter" if script else "loader (the ELF interpreter)"
    why = "is not there" if missing == posixpath.normpath(named) else f"is not there ({missing})"
    # What is not printable in the name is the fault: a carriage return, mostly.
    shown = named if named.isprintable() else repr(named)
    hint = _BRING_IN
    if named.endswith("\r"):
        hint = "its #! line ends in a carriage return: save it with Unix line ends"
    return Finding("missing-interpreter", f"{path}: its {kind} {shown} {why}", named, hint)


def _misbuilt(root: Root, path: str, absolute: str) -> Finding | None:
    head = root.read(absolute, _HEAD_BYTES)
    if not head:
        return Finding("damaged", f"{path}: it is empty", path)
    if head.startswith(b"#!"):
        if interpreter(root, absolute) is None:
            return Finding("damaged", f"{path}: its #! line names no interpreter", path)
        return None
    if not head.startswith(elf.MAGIC):
        message = f"{path}: neither a program of this kernel nor a script with a #! line"
        return Finding("damaged", message, path, "begin a script with #!/bin/sh")
    built = elf.machine(head)
    if built is not None and not built.native:
        return wrong_machine(path, built)
    try:
        with root.opened(absolute) as fd:
            elf.read(fd)
    except elf.DamagedElfError as e:
        return Finding("damaged", f"{path}: a damaged ELF file: {e}", path)
    return None


def wrong_machine(path: str, built: elf.Machine) -> Finding:
    """Return what is told of a program that another kind of node would run."""
    message = f"{path}: built for another architecture, {built.name}; this node is {elf.here()}"
    return Finding("wrong-architecture", message, path, _REBUILD)


def in_path(root: Root, name: str, start: Start) -> str | None:
    """Return where PATH has an executable file *name*; None if nowhere."""
    for directory in start.env.get("PATH", _DEFAULT_PATH).split(":"):
        path = posixpath.join(start.cwd, directory, name)
        try:
            if not root.forbidden(path, start.ids):
                return path
        except OSError:
            continue
    return None


def unfound_by_env(root: Root, path: str, start: Start) -> Finding | None:
    """Return the interpreter that env(1) did not find for the script *path*, if it is one."""
    head = root.read(path, _HEAD_BYTES)
    if not head.startswith(b"#!"):
        return None
    words = os.fsdecode(head[2:].split(b"\n")[0]).strip(" \t").split(None, 1)
    if len(words) < 2 or posixpath.basename(words[0]) != "env":
        return None
    # With options (-S) what is looked for is env's to say; without, all the rest is a name.
    name = words[1]
    if name.startswith("-") or "=" in name or in_path(root, name, start) is not None:
        return None
    message = f"{path}: its interpreter {name} is not in PATH, where env looks for it"
    return Finding("missing-interpreter", message, name, _BRING_IN)
