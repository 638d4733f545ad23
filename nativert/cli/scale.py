"""`scale`: new limits for a running instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from nativert.cli import context, quantities
from nativert.cli.context import Session, pass_session, show
from nativert.cli.quantities import UNSET


@context.command("scale")
@context.instance_argument
@click.option("--cpu", type=quantities.CORES_OR_MAX, help="CPU time, in cores.")
@click.option("--weight", type=click.IntRange(1, 10000), help="Share of the CPU under contention.")
@click.option("--cpuset", type=quantities.CPUS_OR_MAX, help="The CPUs it may use.")
@click.option("--memory", type=quantities.SIZE_OR_MAX, help="Memory, hard limit.")
@click.option("--memory-high", type=quantities.SIZE_OR_MAX, help="Memory, reclaimed above this.")
@click.option("--swap", type=quantities.SIZE_OR_MAX, help="Swap on top of the memory.")
@click.option("--pids", type=quantities.TASKS_OR_MAX, help="Processes and threads.")
@click.option(
    "--io",
    type=quantities.IO_LIMIT,
    multiple=True,
    help="Block I/O of one device: rbps, wbps (SIZE per second), riops, wiops; repeatable.",
)
@click.option("--force", is_flag=True, help="Also under the memory that it uses now.")
@pass_session
def scale(
    session: Session,
    /,
    instance: str,
    io: Sequence[Mapping[str, object]],
    force: bool,
    **values: object,
) -> None:
    """Change the limits of a running instance.

    All of them are changed, or none. `max` takes a limit off.
    """
    change: dict[str, object] = {
        _FIELDS[option]: None if value == UNSET else value
        for option, value in values.items()
        if value is not None
    }
    if io:
        change["io"] = [
            {key: None if value == UNSET else value for key, value in limit.items()} for limit in io
        ]
    if not change:
        raise click.UsageError("no limit is given")
    with session.node() as node:
        row = node.scale(instance, change, force=force)
    show(session, row)


# Options, and the fields of `isolation.cgroups.limits.Limits` that they set.
_FIELDS = {
    "cpu": "cpu_max",
    "weight": "cpu_weight",
    "cpuset": "cpuset",
    "memory": "memory_max",
    "memory_high": "memory_high",
    "swap": "memory_swap",
    "pids": "pids_max",
}
