"""An adapter in host memory: this rank's slice, checked, in one allocation."""

from dataclasses import dataclass, field, replace

from torch import Tensor

from lorikeet_server.kernels import LoraAdapter


@dataclass(frozen=True, slots=True)
class StagedAdapter:
    """One adapter, ready to be moved into a slot."""

    digest: str
    max_rank: int  # of any module, without padding
    matrices: LoraAdapter = field(repr=False)

    @property
    def memory_bytes(self) -> int:
        """Bytes of its matrices, padding included; the same on the host and on a device."""
        return self.matrices.memory.nbytes

    @property
    def host_bytes(self) -> int:
        """Bytes held in host memory: torch hands out pinned memory in powers of two."""
        size = self.memory_bytes
        return 1 << (size - 1).bit_length() if self.matrices.memory.is_pinned() else size

    def at(self, region: Tensor) -> "StagedAdapter":
        """The same adapter where its bytes have been copied to: `region` u8 [memory_bytes], on any device."""
        return replace(self, matrices=self.matrices.at(region))
