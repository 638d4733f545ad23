"""Cgroups behind one Protocol, whatever hierarchies the kernel has mounted."""
