"""The full record of an instance, as fog05 has it, with a ``native`` object beside it."""

from __future__ import annotations

from typing import Any

import msgspec

from nativert.fdu import descriptor as descriptors
from nativert.fdu import record as records
from nativert.fdu import restart
from nativert.runtime import limits as limits_of
from nativert.runtime.context import Context, cgroup_name, descriptor_of
from nativert.runtime.observe import Observed
from nativert.runtime.protocols import Supervision
from nativert.runtime.supervision import acts
from nativert.runtime.users import ID_COUNT
from nativert.runtime.views import Figures, Instance
from nativert.store.boot import LinkFacts
from nativert.store.durable import Row


def inspect(
    context: Context,
    seen: Observed,
    instance: Instance,
    figures: Figures,
    supervision: Supervision | None,
) -> dict[str, object]:
    """Return the record with the true status, interfaces and figures."""
    row, facts = seen.row, seen.facts
    descriptor = descriptor_of(row.descriptor, row.name)
    record = records.decode(row.record.encode(), source=row.name)
    links = {} if facts is None else {link.name: link for link in facts.links}
    interfaces = tuple(
        msgspec.structs.replace(
            interface,
            status=_status(links.get(interface.name)),
            veth_face_name=links[interface.name].link if interface.name in links else None,
        )
        for interface in record.interfaces
    )
    at = {each.cp_id: each.name for each in record.interfaces if each.cp_id}
    points = tuple(
        msgspec.structs.replace(
            point,
            status=_status(links.get(at.get(point.uuid, ""))),
            veth_face_name=links[at[point.uuid]].link if at.get(point.uuid) in links else None,
        )
        for point in record.connection_points
    )
    record = msgspec.structs.replace(
        records.with_status(record, seen.state.wire),
        interfaces=interfaces,
        connection_points=points,
        hypervisor_info=_hypervisor_info(seen, figures),
    )
    answer = records.to_builtins(record)
    answer["native"] = {
        **msgspec.to_builtins(instance),
        "descriptor": msgspec.json.decode(descriptors.encode(descriptor)).get("native", {}),
        "limits": msgspec.to_builtins(
            limits_of.decode(row.limits) or limits_of.of_descriptor(descriptor)
        ),
        "interfaces": [
            {"name": i.name, "address": i.address, "link": context.link_name(i.link)}
            for i in row.interfaces
        ],
        "id_range": [row.id_range, ID_COUNT],
        "data": str(context.paths.instance_lib(row.uuid) / "data"),
        "cgroup": f"{context.driver.parent}/{cgroup_name(row.uuid)}",
        "init_pid": None if facts is None else facts.init_pid,
        "created_at": row.created_at,
        "wanted": row.wanted,
        "restart": _restart(row),
        "health": None if supervision is None else supervision.health(row.uuid),
    }
    return answer


def _status(link: LinkFacts | None) -> str:
    if link is None:
        return "CREATE"
    return "CONNECTED" if link.connected else "DISCONNECTED"


def _restart(row: Row) -> dict[str, object]:
    retry = restart.decode(row.retry)
    decided = retry is not None and retry.run == row.run_count
    return {
        "waits": acts.waits(row),
        "failures": 0 if retry is None else retry.failures,
        "next_attempt_at": retry.at if retry is not None and decided else None,
        "reason": retry.reason if retry is not None and decided else "",
    }


def _hypervisor_info(seen: Observed, figures: Figures) -> dict[str, Any]:
    # The shape that the LXD plugin of fog05 publishes; cpu in ns, memory in bytes.
    if seen.facts is None:
        return {}
    network = {
        link.name: {"hwaddr": link.mac, "addresses": [{"address": link.address}]}
        for link in seen.facts.links
    }
    if figures.cpu_ns is None:
        return {"network": network}
    return {
        "network": network,
        "cpu": {"usage": figures.cpu_ns},
        "memory": {
            "usage": figures.memory_bytes,
            "usage_peak": figures.peak_bytes,
            "swap_usage": figures.swap_bytes or 0,
            "swap_usage_peak": 0,
        },
    }
