"""Starting after what is depended on, and stopping all before it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from nativert.errors import Code, NativertError, TransitionError
from nativert.fdu.attendance import Health
from nativert.fdu.states import State
from nativert.runtime.context import descriptor_of
from nativert.runtime.supervision import acts, dependencies
from nativert.store.durable import Row

if TYPE_CHECKING:
    from nativert.runtime.node import Node
    from nativert.runtime.supervision.supervisor import Supervisor

_START_S: Final = 30.0
_PAUSE_S: Final = 0.05
# How soon one that waits for another asks again: just started, or left to itself.
_SOON_S: Final = 0.2
_LOOK_S: Final = 1.0
_STOPPERS: Final = 32


class Starts:
    """The order of the instances of one node."""

    def __init__(self, node: Node, supervisor: Supervisor) -> None:
        self._node = node
        self._supervisor = supervisor

    def prepare(self, ref: str) -> None:
        """Start what *ref* depends on, and wait until it runs and is healthy.

        NativertError (requirements) for a circle and for what is not there; (run) where a
        dependency does not come up, which the instance is then remembered by.
        """
        store = self._node.context.store
        row = store.find(ref)
        if not descriptor_of(row.descriptor, row.name).depends_on:
            return
        for dependency in dependencies.needed(store.rows(), row):
            try:
                self._bring_up(dependency)
                self._await(dependency)
            except NativertError as e:
                note = _in_vain(dependency, e.message)
                acts.no_dependency(self._node, row.uuid, note)
                raise NativertError(
                    f"{row.name}: {note}", code=Code.RUN, hint=f"start {dependency.name} first"
                ) from e

    def ready(self, uuid: str, brought: set[str]) -> float | None:
        """Begin to start what an instance depends on; None where all of it runs.

        For its supervision, which must not wait: else it is to ask again after these seconds.
        What an operator has stopped is left so, and what gave up or waits has a time of its own.
        *brought* is what was started for this attempt: once. NativertError for what is not
        there, cannot be started, or has been in vain.
        """
        store = self._node.context.store
        row = store.get(uuid)
        if not descriptor_of(row.descriptor, row.name).depends_on:
            return None
        # In the order of starting: one that is not up yet may be needed by the next.
        for dependency in dependencies.needed(store.rows(), row):
            if self._up(dependency):
                continue
            seen = self._node.look(dependency.uuid)
            alone = seen.state not in (State.CONFIGURED, State.DEFINED) or acts.left_alone(seen.row)
            if alone or self._supervisor.ending():
                return _LOOK_S
            if dependency.uuid in brought:
                message = seen.state.value if seen.end is None else seen.end.message
                raise NativertError(_in_vain(dependency, message), code=Code.RUN)
            brought.add(dependency.uuid)
            self._start_again(seen.row)
            if not self._up(dependency):
                return _SOON_S
        return None

    def _start_again(self, row: Row) -> None:
        try:
            if row.wanted == State.RUNNING.value:
                acts.start_again(self._node, row.uuid, self._supervisor.ending)
            else:
                self._bring_up(row)
        except NativertError as e:
            raise NativertError(_in_vain(row, e.message), code=Code.RUN) from e
        self._supervisor.also(row.uuid)

    def _up(self, row: Row) -> bool:
        if self._node.look(row.uuid).state is not State.RUNNING:
            return False
        if descriptor_of(row.descriptor, row.name).native.health is None:
            return True
        return self._supervisor.healthy(row.uuid)

    def _bring_up(self, row: Row) -> None:
        if self._node.look(row.uuid).state is State.DEFINED:
            self._tolerant(lambda: self._node.configure(row.uuid))
        if not self._supervisor.ending() and self._node.look(row.uuid).state is State.CONFIGURED:
            self._tolerant(lambda: self._node.run(row.uuid))
        self._supervisor.also(row.uuid)

    def _tolerant(self, operation: Callable[[], object]) -> None:
        try:
            operation()
        except TransitionError:
            pass  # Somebody else was faster; whether it runs is asked next.

    def _await(self, row: Row) -> None:
        native = descriptor_of(row.descriptor, row.name).native
        deadline = time.monotonic() + _patience_s(native.health)
        while not self._up(row):
            seen = self._node.look(row.uuid)
            if seen.state is State.PAUSED:
                raise NativertError("it is PAUSED", code=Code.RUN)
            if seen.state is not State.RUNNING and not acts.waits(seen.row):
                message = seen.state.value if seen.end is None else seen.end.message
                raise NativertError(message, code=Code.RUN)
            if time.monotonic() > deadline:
                last = self._supervisor.health(row.uuid) or {}
                raise NativertError(f"not healthy in time: {last.get('last', '')}", code=Code.RUN)
            time.sleep(_PAUSE_S)

    def stop_all(self, reason: str) -> None:
        """Stop every instance in parallel, dependents before what they depend on.

        Raises what failed together, after all were tried.
        """
        failures: list[Exception] = []

        def stop(row: Row) -> None:
            try:
                acts.shut_down(self._node, row.uuid, reason)
            except NativertError as e:
                failures.append(e)

        with ThreadPoolExecutor(_STOPPERS, thread_name_prefix="stop") as pool:
            for level in reversed(dependencies.levels(self._node.context.store.rows())):
                list(pool.map(stop, level))
        if failures:
            raise ExceptionGroup("some instances could not be stopped", failures)


def _in_vain(row: Row, why: str) -> str:
    return f"its dependency {row.name} does not run: {why}"


def _patience_s(health: Health | None) -> float:
    if health is None:
        return _START_S
    checks_s = (health.retries + 1) * (health.interval_s + health.timeout_s)
    return _START_S + health.start_period_s + checks_s
