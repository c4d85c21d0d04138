"""Tensor parallelism between the ranks of one shard group."""

from lorikeet_server.dist.group import TensorParallel, connect
from lorikeet_server.dist.meeting import own_address

__all__ = ["TensorParallel", "connect", "own_address"]
