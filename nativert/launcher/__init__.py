"""The processes that fork: launcher, init, and the protocol to reach them."""
