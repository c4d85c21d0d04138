"""Model families. A family's file states only what differs: config mapping, wiring, weight names."""
