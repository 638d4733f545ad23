"""The facade: one node, its instances, and the operations on them.

Everything above (CLI, agent, plugin) uses this and nothing below it. Each operation
takes the instance's lock, settles what has happened meanwhile, checks the edge in the
state table, acts, and reports. References are UUIDs, unique prefixes of one, or names.
"""

from __future__ import annotations

import time
import uuid as uuids
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from nativert.errors import (
    Code,
    NativertError,
    StepError,
    TransitionError,
)
from nativert.fdu import descriptor as descriptors
from nativert.fdu import record as records
from nativert.fdu.descriptor import Descriptor
from nativert.fdu.states import WITH_APPLICATION, Event, Operation, State, allowed, next_state
from nativert.runtime import clean as cleaning
from nativert.runtime import edges, execute
from nativert.runtime import pause as pauses
from nativert.runtime import run as runs
from nativert.runtime import scale as scales
from nativert.runtime.context import Context, descriptor_of
from nativert.runtime.execute import ExecSession
from nativert.runtime.failpoints import failpoint
from nativert.runtime.hold import Holds
from nativert.runtime.observe import Observed, observe, settle
from nativert.runtime.protocols import Moving, NetworkManager, Os, Progress, Reporter
from nativert.runtime.questions import Questions
from nativert.runtime.supervision import acts
from nativert.runtime.views import Entry, Instance
from nativert.store.durable import Row
from nativert.store.identity import Identity

# Of what the kernel refuses outside of the steps that name it.
_CODES: Final = {
    Operation.UNDEFINE: Code.UNDEFINE,
    Operation.CONFIGURE: Code.CONFIGURE,
    Operation.CLEAN: Code.CLEAN,
    Operation.RUN: Code.RUN,
    Operation.STOP: Code.STOP,
    Operation.PAUSE: Code.PAUSE,
    Operation.RESUME: Code.PAUSE,
    Operation.SCALE: Code.SCALE,
    Operation.MIGRATE: Code.MIGRATE,
}


class Node(Questions):
    """One node of this machine. A context manager; may be used by several threads."""

    def __init__(
        self,
        root: Path | None = None,
        *,
        here: bool = False,
        os: Os | None = None,
        network: Callable[[Identity], NetworkManager] | None = None,
        reporter: Reporter | None = None,
        context: Context | None = None,
    ) -> None:
        super().__init__(context or Context(root, here=here, os=os, network=network))
        self._holds = Holds(self._context)
        self._reporter = reporter
        self._moving: Moving | None = None

    def carry(self, moving: Moving | None) -> None:
        """Have somebody reach other nodes from now on, or nobody any more."""
        self._moving = moving

    def close(self) -> None:
        """Finish what goes on in the background; instances go on."""
        self._monitor.close()
        self._holds.close()
        self._context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- operations --------------------------------------------------------------------

    def define(
        self, descriptor: Descriptor, *, name: str | None = None, instance: str | None = None
    ) -> Instance:
        """Enter an instance of *descriptor*; raises NativertError NAME_TAKEN, REQUIREMENTS.

        *instance* is its UUID where somebody else has chosen it.
        """
        from nativert.runtime import admission

        next_state(State.UNDEFINED, Operation.DEFINE)
        context = self._context
        admission.check_machine(descriptor.computation_requirements)
        instance, fdu = instance or str(uuids.uuid4()), descriptor.fdu_uuid
        record = records.new_record(descriptor, instance, fdu)
        networks = None
        if descriptor.networks:
            from nativert.runtime import virtual_networks

            networks = virtual_networks.subnets(context, descriptor)
        row = context.store.add(
            uuid=instance,
            name=name or descriptor.name,
            fdu=fdu,
            descriptor=descriptors.encode(descriptor).decode(),
            record=records.encode(record).decode(),
            desired=State.DEFINED.value,
            subnet=context.identity.subnet,
            blocks=context.identity.blocks,
            interfaces=[interface.name for interface in descriptor.interfaces],
            networks=networks,
            more_blocks=context.more_blocks,
            event=("defined", edges.encode({"state": State.DEFINED.value})),
        )
        failpoint("define.stored")
        self.report(row, State.DEFINED)
        return self._monitor.row(Observed(row, State.DEFINED, None, None))

    def redefine(self, ref: str, descriptor: Descriptor) -> Instance:
        """Have *descriptor* in the place of a DEFINED instance's own; its /data and log stay."""
        from nativert.runtime.redefine import redefine

        return self.operate(
            ref, None, lambda seen: redefine(self._context, seen, descriptor), word="redefine"
        )

    def configure(self, ref: str, *, progress: Progress | None = None) -> Instance:
        """Fetch the image; make cgroups, namespaces, root file system, network."""
        from nativert.runtime.configure import configure

        return self.operate(
            ref, Operation.CONFIGURE, lambda seen: configure(self._context, seen, progress=progress)
        )

    def connect(self, ref: str, point: str, network: str) -> Instance:
        """Put a connection point's interfaces on its virtual network again, or off it with ""."""
        from nativert.runtime import virtual_networks

        return self.operate(
            ref, None, lambda seen: virtual_networks.connect(self._context, seen, point, network)
        )

    def clean(self, ref: str) -> Instance:
        """Remove all that configure made; the data stays until undefine."""

        def act(seen: Observed) -> Observed:
            self._monitor.forget(seen.row.uuid)
            return cleaning.clean(self._context, seen)

        return self.operate(ref, Operation.CLEAN, act)

    def run(self, ref: str, *, env: Mapping[str, str] | None = None) -> Instance:
        """Start the application, and before it what it depends on.

        *env* is added to the descriptor's. NativertError(NO_AGENT) where it asks for
        somebody who is always there, and nobody is.
        """
        self._attended(ref)
        return self.operate(ref, Operation.RUN, lambda seen: runs.run(self._context, seen, env=env))

    def stop(self, ref: str) -> Instance:
        """Send the stop signal, wait for the grace, kill what is left.

        One that has ended and waits to be started again is left as it is.
        """
        return self.operate(
            ref,
            Operation.STOP,
            lambda seen: runs.stop(self._context, seen),
            instead=lambda seen: acts.withdraw(self._context, seen),
        )

    def restart(self, ref: str) -> Instance:
        """Stop and start, with the environment of the last start."""

        def again(seen: Observed) -> Observed:
            facts = seen.facts
            env: Any = {} if facts is None else facts.details.get("env", {})
            stopped = runs.stop(self._context, seen)
            next_state(stopped.state, Operation.RUN)
            return runs.run(self._context, stopped, env=env)

        self._attended(ref)
        return self.operate(ref, Operation.STOP, again)

    def pause(self, ref: str) -> Instance:
        """Freeze the application."""
        return self.operate(ref, Operation.PAUSE, lambda seen: pauses.pause(self._context, seen))

    def resume(self, ref: str) -> Instance:
        """Thaw the application."""
        return self.operate(ref, Operation.RESUME, lambda seen: pauses.resume(self._context, seen))

    def scale(self, ref: str, change: Mapping[str, object], *, force: bool = False) -> Instance:
        """Change limits of the running application; keys are the fields of `Limits`."""
        return self.operate(
            ref,
            Operation.SCALE,
            lambda seen: scales.scale(self._context, seen, change, force=force),
        )

    def migrate(self, ref: str, peer: str) -> dict[str, Any]:
        """Move the running instance to the node *peer*; return what that says of it.

        NativertError: it stays here and runs, unless the code is TIMEOUT after the commit.
        """
        if self._moving is None:
            raise NativertError(
                f"{ref}: cannot migrate: nobody here reaches other nodes",
                code=Code.NO_AGENT,
                hint="start `nativert agent` with a [zenoh] section in its configuration",
            )
        return self._moving.migrate(ref, peer)

    def undefine(self, ref: str) -> None:
        """Forget the instance: nothing of it is left."""
        self.operate(ref, Operation.UNDEFINE, lambda seen: cleaning.undefine(self._context, seen))

    def remove(self, ref: str, *, force: bool = False) -> None:
        """Take the edges down to UNDEFINED.

        A running application is stopped as by stop. With *force* it is killed, and a paused
        one too, which otherwise is refused; and a copy that is on its way is given up here.
        """
        row = self._context.store.find(ref)
        if row.corrupt:
            cleaning.discard(self._context, row)
            return
        if force and self.operate(row.uuid, None, self._force).state == State.UNDEFINED.value:
            return
        state = self.operate(row.uuid, None, lambda seen: seen).state
        if state in (State.RUNNING.value, State.PAUSED.value):
            state = self.stop(row.uuid).state
        if state == State.CONFIGURED.value:
            self.clean(row.uuid)
        self.undefine(row.uuid)

    def _force(self, seen: Observed) -> Observed:
        if seen.row.moving is not None:
            from nativert.runtime.migration.settling import give_up

            return give_up(self._context, seen.row)
        if seen.state is State.PAUSED:
            next_state(seen.state, Event.FORCED_REMOVAL)
        elif seen.state is not State.RUNNING:
            return seen
        return runs.force(self._context, seen)

    # -- the application ---------------------------------------------------------------

    def kill(self, ref: str, number: int) -> None:
        """Send a signal to the application's first process."""
        row = self._context.store.find(ref)
        seen = observe(self._context, row)
        if seen.state not in (State.RUNNING, State.PAUSED):
            raise TransitionError("kill", seen.state.value, allowed(seen.state), name=row.name)
        runs.send_signal(self._context, seen, number)

    def wait(self, ref: str, *, timeout_s: float | None = None) -> Instance:
        """Wait until the application has ended; NativertError(TIMEOUT)."""
        row = self._context.store.find(ref)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        seen = self._sight.look(row)
        while seen.state in WITH_APPLICATION:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not runs.follow(self._context, seen, left_s):
                raise NativertError(
                    f"{row.name}: still runs after {timeout_s:g} s", code=Code.TIMEOUT
                )
            with self._holds.take(row.uuid) as hold:
                seen = hold.seen = hold.seen or settle(self._context, hold.row)
        return self._monitor.row(seen)

    def exec(
        self,
        ref: str,
        argv: Sequence[str],
        *,
        stdio: tuple[int, int, int],
        tty: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> ExecSession:
        """Start a program beside the application, in its namespaces, cgroup and privileges."""
        context = self._context
        row = context.store.find(ref)
        seen = observe(context, row)
        # Not in DEFINED, where there is nothing to be in, nor PAUSED: it would be frozen.
        if seen.state not in (State.CONFIGURED, State.RUNNING):
            raise TransitionError("exec", seen.state.value, allowed(seen.state), name=row.name)
        if seen.facts is None:
            raise AssertionError(f"{seen.state} without facts")
        descriptor = descriptor_of(row.descriptor, row.name)
        plan = execute.session_program(descriptor, seen.facts, argv, env, terminal=tty)
        return execute.start(context, row, plan, stdio=stdio, terminal=tty)

    def write_file(
        self, ref: str, path: str, pieces: Iterable[bytes], *, mode: int = 0o644
    ) -> Entry:
        """Put a file below /data in place at once, the application's own; all or nothing.

        In any state but on the way to another node.
        """
        from nativert.runtime import placing

        return placing.place(self._context, self._holds, ref, path, pieces, mode=mode)

    # -- the frame of every operation ----------------------------------------------------

    def operate(
        self,
        ref: str,
        operation: Operation | None,
        act: Callable[[Observed], Observed],
        *,
        instead: Callable[[Observed], Observed | None] = lambda _: None,
        word: str = "remove",
        quiet: bool = False,
    ) -> Instance:
        """Do *act* to an instance under its lock, from the state that it really has.

        *operation* is checked against the state table, unless *instead* has done all that there
        was to do; an act without one is called *word*. With *quiet* an act that finds nothing to do
        is not reported.
        """
        with self._holds.take(ref) as hold:
            row, seen = hold.row, hold.seen
            hold.seen = None
            try:
                if seen is None:
                    seen = settle(self._context, row)
                done = instead(seen)
                if done is None and operation is not None:
                    next_state(seen.state, operation)
                after = act(seen) if done is None else done
            except TransitionError as e:
                refused = e.of(row.name)
                self._failed(row, operation or word, refused)
                raise refused from None
            except NativertError as e:
                self._failed(row, operation or word, e)
                raise
            except OSError as e:
                code = Code.FAILED if operation is None else _CODES[operation]
                step = word if operation is None else operation.value
                error = StepError(row.name, step, e, code=code)
                self._failed(row, operation or word, error)
                raise error from e
            if after.state is State.UNDEFINED:
                hold.lock.forget()
            hold.seen = after
            edges.tell(self._context, operation, after)
        if not quiet or after is not seen:
            self.report(row, after.state)
        # Not measured: ten more files to read than some operations take themselves.
        shown = self._monitor.row(after, measured=False)
        self._context.store.wake()
        return shown

    def _attended(self, ref: str) -> None:
        row = self._context.store.find(ref)
        if not descriptor_of(row.descriptor, row.name).attended:
            return
        if self._supervision is None:
            raise NativertError(
                f"{row.name}: restart, health and depends_on need somebody who is always there",
                code=Code.NO_AGENT,
                hint="start `nativert agent`, or use `nativert run` in the foreground",
            )
        self._supervision.before_start(row.uuid)

    def _failed(self, row: Row, operation: Operation | str, error: NativertError) -> None:
        edges.refuse(self._context, row, operation, error)
        if self._reporter is not None:
            self._reporter.write_fdu_error(row.fdu, row.uuid, error.code.fog05, error.message)
            self.report(row, observe(self._context, self._context.store.get(row.uuid)).state)

    def report(self, row: Row, state: State) -> None:
        """Have those who listen hear that an instance is in *state*."""
        if self._reporter is not None:
            self._reporter.update_fdu_status(row.fdu, row.uuid, state.wire)
