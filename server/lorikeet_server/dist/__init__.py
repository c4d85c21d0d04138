"""Tensor parallelism between the ranks of one shard group."""

from lorikeet_server.dist.group import TensorParallel, connect

__all__ = ["TensorParallel", "connect"]
