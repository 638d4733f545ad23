"""Several nodes on one host, each in a network namespace of its own, joined by a bridge."""
