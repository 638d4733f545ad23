"""The HTTP API of a node: every operation and question of the command line."""
