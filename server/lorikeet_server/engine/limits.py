"""Sizes fixed by Warmup."""

from dataclasses import dataclass

from lorikeet_server.errors import ConfigError
from lorikeet_server.pb import shard_pb2 as pb


@dataclass(frozen=True, slots=True)
class Limits:
    """Every number in a step is checked against them before a kernel sees it."""

    block_size: int
    num_blocks: int
    max_sequences: int
    max_step_tokens: int
    adapter_slots: int
    max_sequence_tokens: int

    @staticmethod
    def of(request: pb.WarmupRequest, num_blocks: int) -> "Limits":
        """What the router asks for, with as many blocks as there is memory for."""
        return Limits(
            block_size=request.block_size,
            num_blocks=num_blocks,
            max_sequences=request.max_sequences,
            max_step_tokens=request.max_step_tokens,
            adapter_slots=request.adapter_slots,
            max_sequence_tokens=request.max_sequence_tokens,
        )

    @property
    def blocks_per_sequence(self) -> int:
        return -(-self.max_sequence_tokens // self.block_size)

    @property
    def max_decodes(self) -> int:
        """The most sequences that a step of decodes alone can have."""
        return min(self.max_sequences, self.max_step_tokens)


def check(request: pb.WarmupRequest, max_positions: int) -> None:
    """Raises ConfigError if no step could run, or one could go beyond the model's `max_positions`."""
    for name in ("block_size", "max_sequences", "max_step_tokens", "max_sequence_tokens"):
        if (given := getattr(request, name)) < 1:
            raise ConfigError(f"{name} is {given}, it must be at least 1")
    if request.max_sequence_tokens > max_positions:
        raise ConfigError(
            f"max_sequence_tokens is {request.max_sequence_tokens}, the model has {max_positions} positions"
        )
