"""KV memory. Blocks are numbered by the router; this side only holds them."""
