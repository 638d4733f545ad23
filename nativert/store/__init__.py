"""What was asked for (durable) and what is true of this boot."""
