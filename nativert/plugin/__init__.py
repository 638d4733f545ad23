"""The fog05 runtime plugin, and the objects through which plugins reach a node."""
