"""One kernel facility per file. Nothing here knows what an FDU is."""
