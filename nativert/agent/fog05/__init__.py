"""The FDU part of the fog05 agent: its keys and functions over Zenoh."""
