"""The other nodes as this one's agent knows them, and its requests to them."""
