"""FDU words to kernel words: the node, its operations, images, recovery."""
