"""Moving an instance to another node: the source's side, the destination's, and what follows."""
