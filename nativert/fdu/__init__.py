"""The FDU model of fog05: descriptor, record, states. Pure: no I/O."""
