"""Giving a defined instance another descriptor: what it is stays, what it has on this node too."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network

from nativert.errors import DescriptorError, TransitionError
from nativert.fdu import descriptor as descriptors
from nativert.fdu import record as records
from nativert.fdu.descriptor import Descriptor
from nativert.fdu.states import State, allowed
from nativert.runtime import admission, edges, virtual_networks
from nativert.runtime.context import Context, descriptor_of
from nativert.runtime.observe import Observed
from nativert.store.durable import Interface


def redefine(context: Context, seen: Observed, descriptor: Descriptor) -> Observed:
    """Have *descriptor* in the place of the one before; the caller holds the lock.

    UUID, name, /data, log and host ids stay, and the address of each interface whose name and
    network stay; limits are the descriptor's again, and its restarts begin anew. Raises
    TransitionError unless DEFINED, DescriptorError for another FDU's, and what define raises.
    """
    row = seen.row
    if seen.state is not State.DEFINED:
        raise TransitionError("redefine", seen.state.value, allowed(seen.state), name=row.name)
    if descriptor.fdu_uuid != row.fdu:
        raise DescriptorError(
            "id",
            f"is that of FDU {descriptor.fdu_uuid}, and {row.name} is one of FDU {row.fdu}",
            hint="define another instance of it, or keep id and uuid",
        )
    admission.check_machine(descriptor.computation_requirements)
    networks = virtual_networks.subnets(context, descriptor)
    before = descriptor_of(row.descriptor, row.name).networks
    names = [interface.name for interface in descriptor.interfaces]
    record = records.new_record(descriptor, row.uuid, row.fdu)
    row = context.store.redefine(
        row.uuid,
        descriptor=descriptors.encode(descriptor).decode(),
        record=records.encode(record).decode(),
        subnet=context.identity.subnet,
        networks=networks,
        interfaces=names,
        moved={n for n in names if descriptor.networks.get(n) != before.get(n)}
        | {i.name for i in row.interfaces if i.name in networks and not _is_in(i, networks)},
        event=("redefined", edges.encode({"state": State.DEFINED.value})),
    )
    return Observed(row, State.DEFINED, None, seen.end)


def _is_in(interface: Interface, networks: Mapping[str, IPv4Network]) -> bool:
    # A network of the catalog may have got another subnet.
    return IPv4Address(interface.address) in networks[interface.name]
