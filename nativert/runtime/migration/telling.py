"""The application is told that it is to go on at another node, and whether that came to nothing.

By a program that runs inside, or by a line on a socket where the application listens. A signal is
told by `stop` itself, in the place of the stop signal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nativert.errors import Code, NativertError
from nativert.fdu.attendance import Health, Migration
from nativert.runtime.context import Context, descriptor_of
from nativert.runtime.diagnosis_root import Root
from nativert.runtime.migration.line import Line
from nativert.runtime.users import ID_COUNT
from nativert.store.boot import Facts
from nativert.store.durable import Row


def asked(row: Row) -> Migration | None:
    """Return how the application wants to be told; None where it does not."""
    return descriptor_of(row.descriptor, row.name).native.migration


@contextmanager
def told(context: Context, row: Row, facts: Facts) -> Iterator[None]:
    """Have the application get ready; while the block lasts it is stopped.

    NativertError MIGRATE where it does not want to, or not in time. Where the block fails it is
    told that it goes on here, if there is still somebody to tell.
    """
    how = asked(row)
    if how is not None and how.exec:
        _run_inside(context, row, facts, how)
    if how is None or not how.socket:
        yield
        return
    owners = range(row.id_range, row.id_range + ID_COUNT)
    with Line() as line:
        try:
            line.connect(_root(facts), how.socket, owners, timeout_s=how.timeout_s)
            line.prepare()
        except OSError as e:
            line.resume()
            said = e.strerror or str(e)
            raise _unready(f"{how.socket}: {said}") from e
        try:
            yield
        except BaseException:
            line.resume()
            raise


def _root(facts: Facts) -> Root:
    root = Root.of_init(facts.init_pid, facts.init_start)
    if root is None:
        raise ProcessLookupError(3, "its init is gone")
    return root


def _run_inside(context: Context, row: Row, facts: Facts, how: Migration) -> None:
    from nativert.runtime.supervision.probe import probe

    # The same as a check by a program: a time, and the end of what it says.
    check = Health(exec=how.exec, timeout=how.timeout)
    ready, text = probe(context, row, facts, check)
    if not ready:
        raise _unready(text)


def _unready(text: str) -> NativertError:
    return NativertError(f"it is not ready to be moved: {text}", code=Code.MIGRATE)
