"""The five questions that an instance answers: start, run, log, ls, get."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from nativert.errors import Code, DescriptorError, NativertError
from nativert.plugin import keys
from nativert.plugin.connector import Closing, Connector
from nativert.plugin.string_api import Reply, failure
from nativert.runtime.node import Node

MAX_TEXT_BYTES: Final = 64 << 20


def parse_env(text: str) -> dict[str, str]:
    """Return the variables of ``K=V,K2=V2``; a value may hold `=`, and no comma."""
    env = {}
    for entry in filter(None, text.split(",")):
        name, separator, value = entry.partition("=")
        if not separator or not name.strip():
            raise DescriptorError("env", f"cannot hold {entry[:80]!r}: expected NAME=VALUE")
        env[name.strip()] = value
    return env


class InstanceEvals:
    """Registers and answers; `flush` waits until the states up to now are published."""

    def __init__(
        self,
        connector: Connector,
        node: Node,
        path: Callable[[str, str, str], str],
        *,
        request: Callable[[str, str], None],
        flush: Callable[[str, str], None],
    ) -> None:
        self._connector = connector
        self._node = node
        self._path = path
        self._request = request
        self._flush = flush
        self._mutex = threading.Lock()
        self._registered: dict[str, list[Closing]] = {}

    def switch(self, fdu: str, instance: str, on: bool) -> None:
        """Register the evals of an instance, or take them back; safe twice."""
        with self._mutex:
            if not on:
                for one in self._registered.pop(instance, []):
                    one.close()
            elif instance not in self._registered:
                self._registered[instance] = [
                    self._connector.eval(
                        self._path(fdu, instance, name), self._answer(fdu, instance, name)
                    )
                    for name in keys.EVALS
                ]

    def close(self) -> None:
        """Take all back."""
        with self._mutex:
            while self._registered:
                for one in self._registered.popitem()[1]:
                    one.close()

    def _answer(self, fdu: str, instance: str, name: str) -> Callable[[Mapping[str, str]], Reply]:
        act: Callable[[str, str, Mapping[str, str]], Any] = getattr(self, f"_{name}")

        def answer(parameters: Mapping[str, str]) -> Reply:
            try:
                return {"result": act(fdu, instance, parameters)}
            except (NativertError, OSError) as e:
                return failure(e)

        return answer

    def _start(self, fdu: str, instance: str, parameters: Mapping[str, str]) -> str:
        self._request(fdu, instance)
        try:
            self._node.run(instance, env=parse_env(parameters.get("env", "")))
        finally:
            self._flush(fdu, instance)
        return instance

    def _run(self, fdu: str, instance: str, parameters: Mapping[str, str]) -> str:
        self._start(fdu, instance, parameters)
        end = self._node.wait(instance).end
        self._flush(fdu, instance)
        if end is None:
            raise NativertError(f"{instance}: it ended, nobody knows how", code=Code.RUN)
        # As text: that is what a client of fog05 takes for an exit code.
        return str(end.code)

    def _log(self, _fdu: str, instance: str, _parameters: Mapping[str, str]) -> str:
        parts: list[bytes] = []
        size = 0
        for line in self._node.logs(instance):
            parts.append(line.text + (b"" if line.partial else b"\n"))
            size += len(parts[-1])
            if size > MAX_TEXT_BYTES:
                raise NativertError(
                    f"{instance}: its log is longer than {MAX_TEXT_BYTES} bytes", code=Code.FAILED
                )
        return b"".join(parts).decode(errors="replace")

    def _ls(self, _fdu: str, instance: str, _parameters: Mapping[str, str]) -> str:
        names: list[str] = []
        size = 0
        for one in self._node.ls(instance):
            names.append(f"{one.name}/" if one.kind == "directory" else one.name)
            size += len(one.name)
            if size > MAX_TEXT_BYTES:
                raise NativertError(f"{instance}: holds too many files to tell", code=Code.FAILED)
        return json.dumps(sorted(names))

    def _get(self, _fdu: str, instance: str, parameters: Mapping[str, str]) -> str:
        name = parameters.get("filename", "")
        if not name:
            raise DescriptorError("filename", "is required")
        data = self._node.read(instance, name, limit=MAX_TEXT_BYTES)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise NativertError(f"{name}: is not text", code=Code.FAILED) from None
