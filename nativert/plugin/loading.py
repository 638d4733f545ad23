"""Which plugins a node has: those that are installed, and the manifests of a directory.

A plugin is installed by the entry point group `nativert.plugins`; the entry is called with its
manifest and the node's surroundings. A manifest gives an installed plugin of the same name its
UUID and configuration; the native one needs none. What is broken is told and stops nothing else.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from nativert.errors import Code, DescriptorError, NativertError
from nativert.plugin import manifest as manifests
from nativert.plugin.manifest import Manifest
from nativert.plugin.surroundings import Surroundings

GROUP: Final = "nativert.plugins"
NATIVE: Final = "native"
_MOST: Final = 256


class Plugin(Protocol):
    """What an entry point gives back."""

    def start_runtime(self) -> None:
        """Begin to work; raises NativertError or OSError."""
        ...

    def stop_runtime(self) -> None:
        """End; instances go on."""
        ...


class Factory(Protocol):
    """What an entry point names."""

    def __call__(
        self,
        name: str,
        version: int,
        plugin_uuid: str,
        manifest: Manifest,
        *,
        surroundings: Surroundings,
    ) -> Plugin:
        """Return the plugin, which has not begun to work."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """One plugin that was found: `plugin` or `error` is there, `source` says where from."""

    name: str
    source: str
    manifest: Manifest | None = None
    plugin: Plugin | None = None
    error: NativertError | None = None


def load(
    directory: Path | None,
    surroundings: Surroundings,
    *,
    factories: Mapping[str, importlib.metadata.EntryPoint] | None = None,
) -> list[Loaded]:
    """Return every plugin of the node, none of them started; raises nothing for a broken one.

    *directory* holds manifests, `NAME.json` or `NAME/NAME_plugin.json`; it may be missing.
    """
    installed = entry_points() if factories is None else factories
    found: list[Loaded] = []
    named: dict[str, str] = {}
    for source, read in _read(directory):
        name = source.stem if isinstance(read, NativertError) else read.name.lower()
        if isinstance(read, NativertError):
            found.append(Loaded(name, str(source), error=read))
        elif name in named:
            error = NativertError(
                f"{source}: plugin {name} has a manifest already: {named[name]}",
                code=Code.NAME_TAKEN,
                hint="remove one of the two",
            )
            found.append(Loaded(name, str(source), read, error=error))
        else:
            named[name] = str(source)
            found.append(_made(name, str(source), read, installed, surroundings))
    if NATIVE not in named:
        own = manifests.default(surroundings.node_id, NATIVE, "runtime")
        found.append(_made(NATIVE, f"entry point of {GROUP}", own, installed, surroundings))
    return found


def entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """Return what is installed, by name in lower case."""
    return {one.name.lower(): one for one in importlib.metadata.entry_points(group=GROUP)}


def _read(directory: Path | None) -> Iterator[tuple[Path, Manifest | NativertError]]:
    if directory is None or not directory.is_dir():
        return
    paths = [*directory.glob("*.json"), *directory.glob("*/*_plugin.json")]
    for path in sorted(paths)[:_MOST]:
        try:
            yield path, manifests.decode(_text(path), source=str(path))
        except NativertError as e:
            yield path, e
        except OSError as e:
            yield path, NativertError(f"{path}: {e.strerror}", code=Code.USAGE)


def _text(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o002:
            raise NativertError(
                f"{path}: others than root may write it",
                code=Code.PERMISSION,
                hint="chown root and chmod 0644",
            )
        return file.read(manifests.MAX_BYTES + 1)


def _made(
    name: str,
    source: str,
    manifest: Manifest,
    installed: Mapping[str, importlib.metadata.EntryPoint],
    surroundings: Surroundings,
) -> Loaded:
    try:
        if name not in installed:
            known = ", ".join(sorted(installed)) or "none"
            raise NativertError(
                f"plugin {name}: no installed package offers it",
                code=Code.NOT_FOUND,
                hint=f"installed in the group {GROUP}: {known}",
            )
        factory: Factory = installed[name].load()
        plugin = factory(
            manifest.name,
            manifest.version,
            manifest.uuid,
            manifest,
            surroundings=surroundings,
        )
    except NativertError as e:
        return Loaded(name, source, manifest, error=_placed(e, source))
    except Exception as e:  # noqa: BLE001 - somebody else's code must not stop the agent
        text = f"plugin {name}: cannot be loaded: {type(e).__name__}: {e}"
        return Loaded(name, source, manifest, error=NativertError(text))
    return Loaded(name, source, manifest, plugin)


def _placed(error: NativertError, source: str) -> NativertError:
    if isinstance(error, DescriptorError):
        return DescriptorError(error.field, error.reason, hint=error.hint or f"in {source}")
    return error
