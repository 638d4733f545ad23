"""The overlay: nodes of one fleet reach each other's instances, wherever these have moved."""
