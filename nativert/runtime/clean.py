"""clean_fdu and undefine_fdu: what configure made goes, then what define entered."""

from __future__ import annotations

import msgspec

from nativert.fdu.states import State
from nativert.runtime import release
from nativert.runtime.context import Context
from nativert.runtime.failpoints import failpoint
from nativert.runtime.observe import Observed
from nativert.store import boot
from nativert.store.durable import Row


def clean(context: Context, seen: Observed) -> Observed:
    """Remove all that configure made; the caller holds the lock."""
    if seen.facts is None:
        raise AssertionError(f"{seen.state} without facts")
    # Facts of a clean do not tell the end before it any more.
    context.store.flush_ends()
    facts = msgspec.structs.replace(seen.facts, intent="clean")
    boot.write_facts(context.paths, seen.row.uuid, facts)
    try:
        failpoint("clean.intent")
    except BaseException:
        # Nothing has been released: it stays what it was.
        boot.write_facts(context.paths, seen.row.uuid, seen.facts)
        raise
    row = seen.row

    def store() -> None:
        nonlocal row
        row = context.store.update(
            row.uuid, desired=State.DEFINED.value, wanted=State.DEFINED.value, retry=None
        )
        failpoint("clean.stored")

    # The commit waits for the disk while the kernel takes init's mounts apart, which takes as
    # long. The facts go after it: an instance without them that should have some has lost its init.
    release.everything(context, row, facts, meanwhile=store)
    return Observed(row, State.DEFINED, None, seen.end)


def undefine(context: Context, seen: Observed) -> Observed:
    """Forget the instance with its data; the caller holds the lock and then removes it."""
    release.data(context, seen.row)
    failpoint("undefine.data")
    context.store.delete(seen.row.uuid, event=("undefined", '{"state":"UNDEFINED"}'))
    failpoint("undefine.stored")
    return Observed(seen.row, State.UNDEFINED, None, None)


def discard(context: Context, row: Row) -> None:
    """Forget a damaged row, and what can still be attributed to it; the rest is gc's."""
    if "uuid" in row.corrupt:
        context.store.discard(row.seq)
        return
    with context.lock(row.uuid) as lock:
        release.everything(context, row, boot.read_facts(context.paths, row.uuid))
        release.data(context, row)
        context.store.discard(row.seq)
        lock.forget()
