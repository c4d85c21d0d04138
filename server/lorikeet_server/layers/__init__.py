"""The parts that model families share. A layer knows its weights and its shard; it knows no family, step or
slot."""
