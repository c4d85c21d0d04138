"""The shard of Lorikeet: holds a base model and adapters, and computes the steps that the router decides."""

__version__ = "0.1.0"
