"""A node's part in the overlay: what it tells the others, and what it makes of what they tell."""
