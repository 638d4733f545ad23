"""Which plugin runs what: by the name in its manifest and the descriptor's hypervisor."""

from __future__ import annotations

from typing import Final

from nativert.errors import Code, DescriptorError, NativertError
from nativert.plugin import keys, manifest
from nativert.plugin.zenoh_connector import ZenohConnector

_PLUGINS: Final = {
    "BARE": "native",
    "KVM": "kvm",
    "KVM_UK": "kvm",
    "XEN": "xen",
    "XEN_UK": "xen",
    "LXD": "lxd",
    "DOCKER": "docker",
    "MCU": "mcu",
    "ROS2": "ros2",
}


class Hypervisors:
    """The runtime plugins of one node, as their manifests tell."""

    def __init__(self, connector: ZenohConnector, node_id: str) -> None:
        self._connector = connector
        self._node_id = node_id
        self._found: dict[str, str] = {}

    def plugin(self, hypervisor: str) -> str:
        """Return the UUID of the plugin for *hypervisor*; NativertError LAUNCHER without one."""
        name = _PLUGINS.get(hypervisor.upper())
        if name is None:
            expected = ", ".join(_PLUGINS)
            raise DescriptorError("hypervisor", f"is {hypervisor[:80]!r}: expected {expected}")
        known = self._found.get(name)
        # One of this process is known without asking others, who may be slow to answer.
        if known is not None and self._connector.kept(keys.plugin(self._node_id, known)):
            return known
        for sample in self._connector.get(keys.plugin(self._node_id, "*")):
            try:
                found = manifest.decode(sample.value or b"", source=sample.path)
            except DescriptorError:
                continue  # Somebody else's, and not a runtime plugin's of fog05.
            if found.type == "runtime" and found.name.lower() == name:
                self._found[name] = found.uuid
                return found.uuid
        raise NativertError(
            f"node {self._node_id} has no plugin for {hypervisor}",
            code=Code.LAUNCHER,
            hint="start it, or choose another node",
        )
