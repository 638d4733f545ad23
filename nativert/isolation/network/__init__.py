"""Links, addresses, routes, packet filter and sysctls of one node's bridge."""
