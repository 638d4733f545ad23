"""What is there and what it uses: ps, inspect, stats."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from nativert.cli import context, output, quantities
from nativert.cli.context import Session, pass_session
from nativert.cli.output import cores, count, duration, size
from nativert.errors import Code, NativertError
from nativert.runtime.views import Figures, Instance

_AT_REST = ("UNDEFINED", "DEFINED", "CONFIGURED")
_SHORT = 8


@context.command("ps")
@click.option("-a", "--all", "every", is_flag=True, help="Also instances that do not run.")
@click.option("-q", "--quiet", is_flag=True, help="Only UUIDs, one per line.")
@click.option("--all-nodes", is_flag=True, help="Of every node that this one's agent reaches.")
@pass_session
def ps(session: Session, every: bool, quiet: bool, all_nodes: bool) -> None:
    """List instances whose application runs or is paused."""
    silent: list[str] = []
    if all_nodes:
        with session.needed_agent("other nodes") as agent:
            found = agent.everywhere()
        rows, silent = found.instances, found.silent
    else:
        with session.node() as node:
            rows = node.list()
    rows = [row for row in rows if every or row.state not in _AT_REST]
    if session.json:
        output.document([row.instance for row in rows] if quiet else rows)
    elif quiet:
        for row in rows:
            output.line(row.instance)
    else:
        _print_rows(rows, every=every, all_nodes=all_nodes)
    if silent:
        raise ExceptionGroup(
            "some nodes do not answer",
            [NativertError(f"node {name} does not answer", code=Code.TIMEOUT) for name in silent],
        )


def _print_rows(rows: Sequence[Instance], *, every: bool, all_nodes: bool) -> None:
    length = _unique_length([row.instance for row in rows])
    header = ["INSTANCE", "NAME", "STATE", "PID", "CPU", "MEMORY", "PIDS", "UPTIME"]
    table = [_ps_row(row, length) for row in rows]
    if every:
        header.append("END")
        for cells, row in zip(table, rows, strict=True):
            cells.append(row.end.message if row.end else output.UNKNOWN)
    if all_nodes:
        header.insert(0, "NODE")
        for cells, row in zip(table, rows, strict=True):
            cells.insert(0, row.node)
    output.table(header, table, numbers=("PID", "CPU", "MEMORY", "PIDS", "UPTIME"))


def _ps_row(row: Instance, length: int) -> list[str]:
    return [
        row.instance[:length],
        row.name,
        row.state,
        count(row.pid),
        cores(row.cpu_ratio),
        size(row.memory_bytes),
        count(row.pids),
        duration(row.uptime_s),
    ]


def _unique_length(instances: Sequence[str]) -> int:
    length = _SHORT
    while length < 36 and len({name[:length] for name in instances}) < len(instances):
        length += 1
    return length


@context.command("inspect")
@context.instance_argument
@pass_session
def inspect(session: Session, instance: str) -> None:
    """Print the full record as JSON.

    It has fog05's form, and a `native` object beside.
    """
    with session.node() as node:
        record = node.inspect(instance)
    output.document(record)


@context.command("stats")
@context.optional_instances_argument
@click.option("-f", "--follow", is_flag=True, help="Repeat every second.")
@click.option("--watch", type=quantities.DURATION, help="Repeat after this time.")
@pass_session
def stats(session: Session, instances: Sequence[str], follow: bool, watch: float | None) -> None:
    """Print what instances use, from the kernel's counters.

    Without INSTANCE: all that run. With -o json and -f or --watch: one object per line.
    """
    if follow and watch is None:
        watch = 1.0
    if watch is not None and watch <= 0:
        raise click.BadParameter("must be more than 0", param_hint="'--watch'")
    refs = list(instances) or None
    with session.node() as node:
        if watch is None:
            _print_stats(session, node.stats(refs))
            return
        due = time.monotonic()
        while True:
            figures = node.stats(refs)
            if session.json:
                for figure in figures:
                    output.json_line(figure)
            else:
                click.clear()
                _print_stats(session, figures)
            due = max(due + watch, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))


def _print_stats(session: Session, figures: Sequence[Figures]) -> None:
    if session.json:
        output.document(figures)
        return
    header = ["NAME", "STATE", "CPU", "MEMORY", "LIMIT", "PEAK", "PIDS", "READ", "WRITTEN"]
    header += ["RECEIVED", "SENT", "OOM"]
    rows = [
        [
            f.name,
            f.state,
            cores(f.cpu_ratio),
            size(f.memory_bytes),
            size(f.memory_max),
            size(f.peak_bytes),
            count(f.pids),
            size(f.io_read_bytes),
            size(f.io_write_bytes),
            size(f.net_rx_bytes),
            size(f.net_tx_bytes),
            count(f.oom_kills),
        ]
        for f in figures
    ]
    output.table(header, rows, numbers=header[2:])
