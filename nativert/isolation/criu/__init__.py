"""CRIU: what makes images of a process, and a process of images; see criu(8)."""
