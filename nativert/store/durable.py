"""What was asked for: one SQLite file, which survives a power cut at every commit.

Write-ahead log with synchronous=FULL; see sqlite.org/wal.html. Each method is one
transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Final, Unpack

import msgspec

from nativert.errors import Code, DescriptorError, NativertError, UnknownInstanceError
from nativert.store import allocation, rows
from nativert.store.boot import boot_id
from nativert.store.catalog import Catalog
from nativert.store.events import Ended, Pending
from nativert.store.lending import Lending
from nativert.store.moves import Fence, raise_fence
from nativert.store.paths import Paths, check_uuid
from nativert.store.rows import Changes, Event, Interface, Row

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Changes", "Event", "Interface", "Row", "Store"]

_SHOWN_CANDIDATES: Final = 5
_KEPT_ROWS: Final = 4096
_INTERFACES: Final = (
    "SELECT links.instance, links.interface, addresses.address, links.number"
    " FROM links JOIN addresses USING (instance, interface)"
)


class Store(Lending, Catalog):
    """The durable records of one node; any thread may call, one at a time goes on.

    Raises NativertError: STORE when the file is damaged, of a newer version, or the disk
    is full (the old record is intact then), TIMEOUT when another command writes too long.
    """

    def __init__(self, paths: Paths) -> None:
        # Rows as last read, by UUID: whoever serves many operations asks for the same ones
        # again and again. True while nobody else has written: see `_known`.
        self._rows: dict[str, Row] = {}
        self._data_version = 0
        super().__init__(paths)

    def _rolled_back(self) -> None:
        self._rows.clear()

    def _forget(self, instances: Iterable[str]) -> None:
        for uuid in instances:
            self._rows.pop(uuid, None)

    def add(
        self,
        *,
        uuid: str,
        name: str,
        fdu: str,
        descriptor: str,
        record: str,
        desired: str,
        subnet: IPv4Network,
        blocks: Sequence[int],
        interfaces: Sequence[str] = (),
        addresses: Mapping[str, str] | None = None,
        networks: Mapping[str, IPv4Network] | None = None,
        limits: str | None = None,
        more_blocks: Callable[[], Sequence[int]] | None = None,
        event: tuple[str, str] | None = None,
        moving: str | None = None,
        fence: Fence | None = None,
    ) -> Row:
        """Enter an instance, with an id range, and an address and a link per interface.

        *more_blocks* is asked once, outside of the transaction, when *blocks* are used up.
        *networks* has the subnet of interfaces that are not of *subnet*; *addresses* by
        interface are given where they are free, and those that are not of their subnet are
        the caller's to allow. *event* is (kind, JSON). Raises NativertError: NAME_TAKEN,
        ADDRESS_EXHAUSTED, IDS_EXHAUSTED; DescriptorError for what is no UUID, and for two
        interfaces of one name.
        """
        check_uuid(uuid)
        if len({*interfaces}) != len(interfaces):
            raise DescriptorError("interfaces", "two have the same name")
        try:
            with self._transaction() as connection:
                self._refuse_duplicate(connection, uuid, name)
                id_range = allocation.free_range(connection, blocks)
                connection.execute(
                    "INSERT INTO instances (uuid, name, fdu, descriptor, record, limits, desired,"
                    " wanted, told, boot_id, id_range, created_at, moving)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        uuid,
                        name,
                        fdu,
                        descriptor,
                        record,
                        limits,
                        desired,
                        desired,
                        desired,
                        boot_id(),
                        id_range,
                        time.time(),
                        moving,
                    ),
                )
                raise_fence(connection, uuid, fence)
                for position, interface in enumerate(interfaces):
                    allocation.take_address(
                        connection,
                        (networks or {}).get(interface, subnet),
                        uuid,
                        interface,
                        (addresses or {}).get(interface),
                    )
                    allocation.take_link(connection, uuid, interface, position)
                self._append(connection, uuid, event)
                return self._select(connection, uuid)
        except NativertError as e:
            if e.code is not Code.IDS_EXHAUSTED or more_blocks is None:
                raise
        # The registry's lock is never taken inside a transaction: others wait for both.
        return self.add(
            uuid=uuid,
            name=name,
            fdu=fdu,
            descriptor=descriptor,
            record=record,
            desired=desired,
            subnet=subnet,
            blocks=more_blocks(),
            interfaces=interfaces,
            addresses=addresses,
            networks=networks,
            limits=limits,
            event=event,
            moving=moving,
            fence=fence,
        )

    def get(self, uuid: str) -> Row:
        """Return the instance with this whole UUID; raises UnknownInstanceError."""
        with self._reading() as connection:
            return self._known(connection).get(uuid) or self._select(connection, uuid)

    def find(self, ref: str) -> Row:
        """Return the instance that *ref* names: a UUID, a name, or a unique prefix of a UUID.

        They are tried in this order. Raises UnknownInstanceError, or
        NativertError(AMBIGUOUS) with the candidates.
        """
        prefix = ref.lower()
        with self._reading() as connection:
            known = self._known(connection).get(prefix)
            if known is not None:
                return known
            found = connection.execute(
                "SELECT uuid FROM instances WHERE uuid = ? OR name = ? ORDER BY uuid = ? DESC",
                (prefix, ref, prefix),
            ).fetchone()
            if found is not None:
                return self._select(connection, found[0])
            if not ref or not set(prefix) <= set("0123456789abcdef-"):
                raise UnknownInstanceError(ref)
            # "g" sorts after every character of a UUID.
            candidates = connection.execute(
                "SELECT uuid, name FROM instances WHERE uuid >= ? AND uuid < ? ORDER BY uuid",
                (prefix, prefix + "g"),
            ).fetchall()
            if not candidates:
                raise UnknownInstanceError(ref)
            if len(candidates) == 1:
                return self._select(connection, candidates[0][0])
        shown = ", ".join(f"{uuid} ({name})" for uuid, name in candidates[:_SHOWN_CANDIDATES])
        more = len(candidates) - _SHOWN_CANDIDATES
        raise NativertError(
            f"{ref}: {len(candidates)} instances begin so: {shown}"
            + (f" and {more} more" if more > 0 else ""),
            code=Code.AMBIGUOUS,
            hint="give more digits, or the name",
        )

    def rows(self) -> list[Row]:
        """Return every instance in the order of definition; damaged ones say so."""
        with self._reading() as connection:
            # One snapshot for the two questions.
            connection.execute("BEGIN")
            try:
                values = connection.execute(f"{rows.SELECT} ORDER BY seq").fetchall()
                interfaces: dict[str, list[tuple[str, int, int]]] = {}
                for instance, *interface in connection.execute(
                    f"{_INTERFACES} ORDER BY links.instance, links.position"
                ):
                    interfaces.setdefault(instance, []).append(tuple(interface))
            finally:
                connection.execute("ROLLBACK")  # nothing was written
        return [rows.row(each, interfaces.get(each[1], ())) for each in values]

    def update(
        self,
        uuid: str,
        *,
        event: tuple[str, str] | None = None,
        told: str | None = None,
        fence: Fence | None = None,
        wait: bool = True,
        **changes: Unpack[Changes],
    ) -> Row:
        """Change columns of one instance, and add *event* (kind, JSON), in one commit.

        *told* is the state that the event tells, *fence* the migration that the change belongs
        to. Without *wait* it survives a power cut only when `save` has finished. Raises
        UnknownInstanceError.
        """
        unknown = changes.keys() - Changes.__annotations__.keys()
        if unknown:
            raise TypeError(f"no such column to update: {', '.join(sorted(unknown))}")
        return self._with_reserve(
            lambda: self._update(uuid, event, told, fence, changes, wait=wait)
        )

    def _update(
        self,
        uuid: str,
        event: tuple[str, str] | None,
        told: str | None,
        fence: Fence | None,
        changes: Changes,
        *,
        wait: bool,
    ) -> Row:
        assignments = "".join([f'"{column}" = ?, ' for column in changes])
        values = [*changes.values(), boot_id(), uuid]
        if told is not None:
            # With what it is about, and not a statement later.
            assignments += '"told" = ?, '
            values.insert(-2, told)
        with self._transaction(wait=wait) as connection:
            changed = connection.execute(
                f"UPDATE instances SET {assignments} boot_id = ? WHERE uuid = ?",  # noqa: S608
                values,
            )
            if changed.rowcount == 0:
                raise UnknownInstanceError(uuid)
            self._append(connection, uuid, event)
            raise_fence(connection, uuid, fence)
            known = self._known(connection).get(uuid)
            if known is None:
                return self._select(connection, uuid)
            row = msgspec.structs.replace(known, boot_id=boot_id(), **changes)
            self._rows[uuid] = row
            return row

    def redefine(
        self,
        uuid: str,
        *,
        descriptor: str,
        record: str,
        subnet: IPv4Network,
        networks: Mapping[str, IPv4Network],
        interfaces: Sequence[str],
        moved: Collection[str],
        event: tuple[str, str],
    ) -> Row:
        """Give an instance another descriptor, and the *interfaces* that this has.

        Addresses and links stay with the names that stay, but for those in *moved*, which are on
        another network now. Raises NativertError: ADDRESS_EXHAUSTED; UnknownInstanceError.
        """
        with self._transaction() as connection:
            self._append(connection, uuid, event)
            allocation.keep_interfaces(connection, uuid, [n for n in interfaces if n not in moved])
            for position, name in enumerate(interfaces):
                if not allocation.place(connection, uuid, name, position):
                    wanted = networks.get(name, subnet)
                    allocation.take_address(connection, wanted, uuid, name)
                    allocation.take_link(connection, uuid, name, position)
            changed = connection.execute(
                "UPDATE instances SET descriptor = ?, record = ?, limits = NULL, retry = NULL,"
                " boot_id = ? WHERE uuid = ?",
                (descriptor, record, boot_id(), uuid),
            )
            if changed.rowcount == 0:
                raise UnknownInstanceError(uuid)
            self._rows.pop(uuid, None)
            return self._select(connection, uuid)

    def note_end(self, row: Row, end: str, event: tuple[str, str], *, told: str) -> Row:
        """Have *row* changed by the *end* of its run soon, in order, without waiting for the disk.

        Unless somebody else has noted it until then. Returns the row as it will be. As long as
        that waits, this process asks the disk first, and another one finds the evidence.
        """
        ended = Ended(row.run_count, end, row.desired)
        self._outbox.put(Pending(time.time(), row.uuid, *event, told, ended))
        return msgspec.structs.replace(row, desired=told, end=end, boot_id=boot_id())

    def delete(
        self,
        uuid: str,
        *,
        event: tuple[str, str] | None = None,
        fence: Fence | None = None,
        lend: Collection[str] = (),
    ) -> None:
        """Forget an instance and release what was allocated; raises UnknownInstanceError.

        The caller has seen the kernel confirm that its links are gone. *lend* are addresses that
        it has on another node from now on.
        """
        self._with_reserve(lambda: self._delete(uuid, event, fence, lend))

    def _delete(
        self,
        uuid: str,
        event: tuple[str, str] | None,
        fence: Fence | None,
        lend: Collection[str],
    ) -> None:
        with self._transaction() as connection:
            # Before its name is forgotten.
            self._append(connection, uuid, event)
            raise_fence(connection, uuid, fence)
            allocation.release_addresses(connection, uuid, lend=lend)
            deleted = connection.execute("DELETE FROM instances WHERE uuid = ?", (uuid,))
            if deleted.rowcount == 0:
                raise UnknownInstanceError(uuid)
            self._rows.pop(uuid, None)

    def discard(self, seq: int) -> None:
        """Forget a row by its number, for one whose damaged UUID finds nothing any more."""
        with self._transaction() as connection:
            uuid = "(SELECT uuid FROM instances WHERE seq = ?)"
            for table in ("addresses", "links"):
                connection.execute(f"DELETE FROM {table} WHERE instance = {uuid}", (seq,))  # noqa: S608
            connection.execute("DELETE FROM instances WHERE seq = ?", (seq,))
            self._rows.clear()

    def _known(self, connection: sqlite3.Connection) -> dict[str, Row]:
        # Changes when another connection has committed, not by our own commits; two
        # microseconds. See sqlite.org/pragma.html.
        version = connection.execute("PRAGMA data_version").fetchone()[0]
        if version != self._data_version:
            self._rows.clear()
            self._data_version = version
        return self._rows

    def _refuse_duplicate(self, connection: sqlite3.Connection, uuid: str, name: str) -> None:
        found = connection.execute(
            "SELECT uuid, name FROM instances WHERE uuid = ? OR name = ?", (uuid, name)
        ).fetchone()
        if found is None:
            return
        if found[0] == uuid:
            raise NativertError(
                f"instance {uuid} is defined already, as {found[1]}",
                code=Code.NAME_TAKEN,
                hint="undefine it first, or give the record another UUID",
            )
        raise NativertError(
            f"the name {name} is taken by instance {found[0]}",
            code=Code.NAME_TAKEN,
            hint="choose another one with --name, or change that one with define --replace",
        )

    def _select(self, connection: sqlite3.Connection, uuid: str) -> Row:
        values = connection.execute(f"{rows.SELECT} WHERE uuid = ?", (uuid,)).fetchone()
        if values is None:
            raise UnknownInstanceError(uuid)
        interfaces = connection.execute(
            f"{_INTERFACES} WHERE links.instance = ? ORDER BY links.position", (uuid,)
        )
        row = rows.row(values, [tuple(interface[1:]) for interface in interfaces])
        if not row.corrupt:
            if len(self._rows) >= _KEPT_ROWS:
                self._rows.clear()
            self._rows[row.uuid] = row
        return row
