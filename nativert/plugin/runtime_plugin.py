"""The native runtime plugin: fog05's interface of a runtime plugin, standing on `runtime.Node`.

Desired records come in by the connector, actual ones go out by it. What others do with the same
node (the command line, the API) is published too: the node reports everything.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

from nativert.errors import Code, DescriptorError, NativertError, UnknownInstanceError
from nativert.fdu.states import State
from nativert.plugin import keys, manifest, requests
from nativert.plugin.connector import Closing, Sample
from nativert.plugin.instance_evals import InstanceEvals, parse_env
from nativert.plugin.lanes import Lanes
from nativert.plugin.manifest import Manifest
from nativert.plugin.publisher import HOLD_S, Publisher
from nativert.plugin.string_api import arguments
from nativert.plugin.surroundings import Surroundings

# fog05's own codes, where they differ by what was asked for.
_MOVE_CODES: Final = {"TAKE_OFF": 8, "LAND": 9, "MIGRATE": 10}
_LOOK_S: Final = 1.0
_WAIT_S: Final = 60.0
_KILL_S: Final = 20.0
_SIGKILL: Final = 9
# How soon the source must have begun to bring an instance.
_LAND_S: Final = 20.0
_LAND_LOOK_S: Final = 0.1


class NativePlugin:
    """Satisfies fog05's RuntimePluginFDU, and `runtime.protocols.Reporter`."""

    def __init__(
        self,
        name: str,
        version: int,
        plugin_uuid: str,
        manifest: Manifest,
        *,
        surroundings: Surroundings,
        hold_s: float = HOLD_S,
    ) -> None:
        self.name = name
        self.version = version
        self.uuid = plugin_uuid
        self.manifest = manifest
        self.configuration = _configuration(manifest, surroundings.node_id)
        self.node = surroundings.node_id
        self.os, self.nm, self.agent = surroundings.os, surroundings.nm, surroundings.agent
        self._around = surroundings
        self._runtime = surroundings.node
        self._connector = surroundings.connector
        self._hold_s = hold_s
        self._lanes = Lanes()
        self._stamps: dict[str, str] = {}
        self._thread = threading.local()
        self._stopped = threading.Event()
        self._open: list[Closing] = []
        self._publisher: Publisher | None = None
        self._evals: InstanceEvals | None = None
        self._watcher: threading.Thread | None = None

    # -- the plugin's life ---------------------------------------------------------------

    def start_runtime(self) -> None:
        """Publish what there is, take requests, and say that the plugin is there; once."""
        if self._publisher is not None:
            raise NativertError(f"plugin {self.name} runs already", code=Code.FAILED)
        self.wait_dependencies()
        try:
            self._start()
        except BaseException:
            self.stop_runtime()
            raise

    def _start(self) -> None:
        self._evals = InstanceEvals(
            self._connector,
            self._runtime,
            partial(keys.instance_eval, self.node, self.uuid),
            request=self._requested,
            flush=self._settled,
        )
        self._publisher = Publisher(
            self._connector,
            partial(keys.record, keys.ACTUAL, self.node, self.uuid),
            self._truth,
            self._evals.switch,
            hold_s=self._hold_s,
        )
        self._around.reports.add(self)
        for row in self._runtime.list():
            self._publisher.look(row.fdu, row.instance)
        self._publisher.flush()
        asked = keys.record(keys.DESIRED, self.node, self.uuid, "*", "*")
        self._open.append(self._connector.subscribe(asked, self._asked))
        known = {row.instance for row in self._runtime.list()}
        for sample in self._connector.get(asked):
            # Asked for while nobody listened. Older requests of known instances are done, or
            # were overtaken by what has been called since.
            if keys.of_record(sample.path).instance not in known:
                self._asked(sample, only="DEFINE")
        path = keys.plugin(self.node, self.uuid)
        self._open.append(self._connector.liveliness(path))
        self._connector.put(path, manifest.encode(self.manifest, pid=os.getpid(), status="running"))
        self._watcher = threading.Thread(target=self._watch, name="plugin watch", daemon=True)
        self._watcher.start()

    def stop_runtime(self) -> None:
        """Take no more requests and say that the plugin is gone; instances go on. Safe twice."""
        publisher, evals = self._publisher, self._evals
        if publisher is None or evals is None:
            return
        self._stopped.set()
        self._connector.delete(keys.plugin(self.node, self.uuid))
        while self._open:
            self._open.pop().close()
        self._lanes.close(_WAIT_S)
        if self._watcher is not None:
            self._watcher.join()
        evals.close()
        publisher.close()

    def wait_dependencies(self) -> None:
        """Wait until the plugins that this one needs are there; NativertError(TIMEOUT)."""
        deadline = time.monotonic() + _WAIT_S
        missing = set(self._around.needs)
        while missing:
            for sample in self._connector.get(keys.plugin(self.node, "*")):
                with suppress(DescriptorError):
                    found = manifest.decode(sample.value or b"", source=sample.path)
                    missing.discard(found.type)
            if missing and (time.monotonic() > deadline or self._stopped.wait(0.1)):
                raise NativertError(
                    f"no plugin of type {', '.join(sorted(missing))} within {_WAIT_S:.0f} s",
                    code=Code.TIMEOUT,
                    hint="start it, or see its own log",
                )

    # -- what fog05 calls ----------------------------------------------------------------

    def get_fdus(self) -> dict[str, dict[str, Any]]:
        """Return the record of every instance, by its UUID."""
        return {row.instance: self._truth(row.instance) for row in self._runtime.list()}

    def get_local_instances(self, fdu_uuid: str) -> list[str]:
        """Return the UUIDs of an FDU's instances on this node."""
        return [row.instance for row in self._runtime.list() if row.fdu == fdu_uuid]

    def define_fdu(self, fdu_record: Mapping[str, Any]) -> None:
        """Enter an instance with the UUID of its record; one that is there already stays."""
        record = dict(fdu_record)
        instance, fdu = str(record.get("uuid")), str(record.get("fdu_id"))
        try:
            present = self._runtime.get(instance)
        except UnknownInstanceError:
            present = None
        if present is not None and present.instance == instance:
            if present.fdu != fdu:
                raise NativertError(
                    f"instance {instance} is one of FDU {present.fdu}", code=Code.NAME_TAKEN
                )
            return
        descriptor = requests.descriptor_of(record, self._known(fdu))
        try:
            self._runtime.define(descriptor, instance=instance)
        except NativertError as e:
            if e.code is not Code.NAME_TAKEN:
                raise
            # A record has no name, and an FDU may have several instances on one node.
            name = f"{descriptor.name[:55]}-{instance[:8]}"
            self._runtime.define(descriptor, name=name, instance=instance)

    def undefine_fdu(self, instance_uuid: str) -> None:
        """Forget an instance."""
        self._runtime.undefine(instance_uuid)

    def configure_fdu(self, instance_uuid: str) -> None:
        """Make what the instance needs."""
        self._runtime.configure(instance_uuid)

    def clean_fdu(self, instance_uuid: str) -> None:
        """Remove what configure made."""
        self._runtime.clean(instance_uuid)

    def run_fdu(self, instance_uuid: str, env: str = "") -> None:
        """Start the application; *env* is ``K=V,K2=V2``."""
        self._runtime.run(instance_uuid, env=parse_env(env))

    def stop_fdu(self, instance_uuid: str) -> None:
        """Stop the application; a frozen one is killed, since it hears nothing."""
        if self._runtime.get(instance_uuid).state != State.PAUSED.value:
            self._runtime.stop(instance_uuid)
            return
        self._runtime.kill(instance_uuid, _SIGKILL)
        row = self._runtime.wait(instance_uuid, timeout_s=_KILL_S)
        self.update_fdu_status(row.fdu, row.instance, State(row.state).wire)

    def pause_fdu(self, instance_uuid: str) -> None:
        """Freeze the application."""
        self._runtime.pause(instance_uuid)

    def resume_fdu(self, instance_uuid: str) -> None:
        """Thaw the application."""
        self._runtime.resume(instance_uuid)

    def scale_fdu(self, instance_uuid: str, fdu_record: Mapping[str, Any]) -> None:
        """Change the limits to those that the record's native object names."""
        record = dict(fdu_record)
        change = requests.change_of(record, self._known(str(record.get("fdu_id"))))
        self._runtime.scale(instance_uuid, change)

    def migrate_fdu(self, instance_uuid: str, destination: str = "") -> None:
        """Move the instance to another node, whose id is *destination*."""
        if not destination:
            raise DescriptorError("migration_properties.destination", "names no node")
        self._runtime.migrate(instance_uuid, destination)

    def land_fdu(self, instance_uuid: str, source: str) -> None:
        """Wait until an instance that another node moves here runs; NativertError."""
        if not source:
            raise DescriptorError("migration_properties.source", "names no node")
        if not source:
            raise DescriptorError("migration_properties.source", "names no node")
        if source == self.node:
            raise NativertError(
                f"{instance_uuid}: cannot migrate: it is on that node", code=Code.MIGRATE
            )
        came, deadline = False, time.monotonic() + _LAND_S
        while True:
            try:
                if self._runtime.get(instance_uuid).state == State.RUNNING.value:
                    return
                came = True
            except UnknownInstanceError:
                if came or time.monotonic() > deadline:
                    raise NativertError(
                        f"{instance_uuid}: node {source} has not brought it here",
                        code=Code.MIGRATE,
                        hint="see what the source says of it",
                    ) from None
            if self._stopped.wait(_LAND_LOOK_S):
                return

    def update_fdu_status(self, fdu_uuid: str, instance_uuid: str, status: str) -> None:
        """Publish a status in the instance's record."""
        if self._publisher is not None:
            self._publisher.status(fdu_uuid, instance_uuid, status)

    def write_fdu_error(self, fdu_uuid: str, instance_uuid: str, errno: int, errmsg: str) -> None:
        """Publish status ERROR for a while, then the true one."""
        self._thread.told = True
        if self._publisher is not None:
            self._publisher.error(fdu_uuid, instance_uuid, errno, errmsg)

    # -- requests ------------------------------------------------------------------------

    def _asked(self, sample: Sample, only: str = "") -> None:
        """Take one desired record; it is carried out in its instance's own lane."""
        if sample.value is None or self._publisher is None:
            return
        key = keys.of_record(sample.path)
        try:
            request, record = requests.decode(sample.value, sample.path)
            if (request.fdu_id, request.uuid) != key:
                raise DescriptorError("uuid", f"is not the instance of {sample.path}")
            if only and request.status != only:
                return
            if self._stamps.get(key.instance) == sample.stamp:
                return  # The same record once more.
            self._stamps[key.instance] = sample.stamp
            self._publisher.requested(key.instance, record)
            self._requested(*key)
            self._lanes.submit(key.instance, partial(self._carry_out, request.status, key, record))
        except NativertError as e:
            self.write_fdu_error(key.fdu, key.instance, e.code.fog05, str(e))

    def _carry_out(self, wanted: str, key: keys.InstanceKey, record: dict[str, Any]) -> None:
        self._thread.told = False
        try:
            if wanted not in requests.DONE_IN:
                accepted = ", ".join(requests.DONE_IN)
                raise DescriptorError("status", f"{wanted[:80]!r} asks for nothing: {accepted} do")
            if wanted in _MOVE_CODES:
                self._move(wanted, key.instance, record)
                return
            if self._done(wanted, key):
                self._settled(*key)
                return
            self._call(wanted, key.instance, record)
            if wanted == "UNDEFINE":
                self._stamps.pop(key.instance, None)
        except NativertError as e:
            # An operation of the node has told by now, in this thread; what never became one
            # is told here.
            if not self._thread.told:
                code = _MOVE_CODES.get(wanted, e.code.fog05)
                self.write_fdu_error(key.fdu, key.instance, code, str(e))
        except OSError as e:
            self.write_fdu_error(key.fdu, key.instance, Code.FAILED.fog05, str(e))

    def _move(self, wanted: str, instance: str, record: dict[str, Any]) -> None:
        between = record.get("migration_properties")
        between = between if isinstance(between, dict) else {}
        if wanted == "LAND":
            self.land_fdu(instance, str(between.get("source") or ""))
        else:
            self.migrate_fdu(instance, str(between.get("destination") or ""))

    def _call(self, wanted: str, instance: str, record: dict[str, Any]) -> None:
        if wanted == "DEFINE":
            self.define_fdu(record)
        elif wanted == "SCALE":
            self.scale_fdu(instance, record)
        else:
            {
                "CONFIGURE": self.configure_fdu,
                "RUN": self.run_fdu,
                "STOP": self.stop_fdu,
                "PAUSE": self.pause_fdu,
                "RESUME": self.resume_fdu,
                "CLEAN": self.clean_fdu,
                "UNDEFINE": self.undefine_fdu,
            }[wanted](instance)

    def _done(self, wanted: str, key: keys.InstanceKey) -> bool:
        state = requests.DONE_IN[wanted]
        if state is None:
            return False
        try:
            return self._runtime.get(key.instance).state == state.value
        except UnknownInstanceError:
            return state is State.UNDEFINED

    def _requested(self, fdu: str, instance: str) -> None:
        if self._publisher is not None:
            self._publisher.go_on(fdu, instance)

    def _settled(self, fdu: str, instance: str) -> None:
        if self._publisher is not None:
            self._publisher.look(fdu, instance)
            self._publisher.flush()

    # -- records -------------------------------------------------------------------------

    def _truth(self, instance: str) -> dict[str, Any]:
        record = self._runtime.inspect(instance)
        return {name: value for name, value in record.items() if name != "native"}

    def _known(self, fdu: str) -> dict[str, Any]:
        """Return the catalog's descriptor, or nothing where there is none."""
        try:
            reply = self.agent("get_fdu_info", arguments(fdu_uuid=fdu))
        except NativertError:
            return {}
        known = reply.get("result")
        return known if isinstance(known, dict) else {}

    def _watch(self) -> None:
        """Publish ends that nobody asked for, and the figures of what runs."""
        publisher = self._publisher
        assert publisher is not None
        figures_at = time.monotonic()
        seen = -1
        while not self._stopped.wait(_LOOK_S):
            due = time.monotonic() >= figures_at
            if due:
                figures_at = time.monotonic() + self.configuration.update_interval_s
            published = publisher.published()
            with suppress(NativertError, OSError):
                # Whoever supervises the node notes an end at once; all look again when due.
                latest = self._runtime.latest_event()
                if latest == seen and not due:
                    continue
                seen = latest
                for row in self._runtime.list():
                    word = State(row.state).wire
                    known = published.pop(row.instance, "")
                    active = row.state in (State.RUNNING.value, State.PAUSED.value)
                    if known not in (word, "ERROR") or (due and active):
                        publisher.look(row.fdu, row.instance)


def _configuration(given: Manifest, node_id: str) -> manifest.NativeConfiguration:
    found = manifest.native_configuration(given)
    if found.nodeid not in ("", node_id):
        raise DescriptorError(
            "configuration.nodeid", f"is {found.nodeid[:80]!r}: this node is {node_id}"
        )
    return found
