"""The shard without its wire: a loaded model, the adapters, and the runner of the current Warmup.

Not thread-safe: everything but `library` belongs to the compute thread.
"""

from dataclasses import dataclass

import torch
from loguru import logger

from lorikeet_server.adapters.library import AdapterLibrary
from lorikeet_server.adapters.slots import AdapterSlots
from lorikeet_server.dist import TensorParallel
from lorikeet_server.engine import memory
from lorikeet_server.engine.runner import Runner
from lorikeet_server.engine.sequences import Limits, Sequences
from lorikeet_server.engine.warmup import exercise
from lorikeet_server.errors import ConfigError, NotReadyError
from lorikeet_server.kernels import Kernels
from lorikeet_server.kvcache.pool import KvPool, KvShape, count_blocks
from lorikeet_server.models.causal_lm import CausalLM
from lorikeet_server.pb import shard_pb2 as pb

DEVICE = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Identity:
    """What `Info` says beyond the model's config."""

    model_id: str
    base_digest: str
    dtype: str
    version: str


class Engine:
    """Answers Info, Warmup and steps."""

    def __init__(
        self,
        identity: Identity,
        model: CausalLM,
        kernels: Kernels,
        tp: TensorParallel,
        library: AdapterLibrary,
    ) -> None:
        self.library = library
        self._identity, self._model, self._kernels, self._tp = identity, model, kernels, tp
        self._runner: Runner | None = None

    @property
    def kv_shape(self) -> KvShape:
        config = self._model.config
        return KvShape(config.num_layers, self._model.kv_heads, config.head_dim, self._kernels.dtype)

    def info(self) -> pb.InfoResponse:
        config = self._model.config
        return pb.InfoResponse(
            model_id=self._identity.model_id,
            base_digest=self._identity.base_digest,
            dtype=self._identity.dtype,
            device_type=DEVICE.type,
            architecture=config.architecture,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_positions,
            rank=self._tp.rank,
            world_size=self._tp.size,
            version=self._identity.version,
            kv_bytes_per_token=self.kv_shape.bytes_per_token,
            synchronous_moves=True,
            lora_targets=sorted({target.name.rsplit(".", 1)[-1] for target in self._model.lora_targets()}),
        )

    def warmup(self, request: pb.WarmupRequest) -> pb.WarmupResponse:
        """Allocates the KV pool and the adapter tables, and runs every kernel once. Raises ConfigError."""
        _check(request, self._model.config.max_positions)
        # What an earlier call allocated is free again before this one measures.
        self._runner = None
        self._model.release()
        free = memory.available_bytes()
        longest = -(-request.max_sequence_tokens // request.block_size)
        # With no size given, more blocks than every slot at full length can use would only be cache.
        wanted = request.max_sequences * longest if not request.kv_bytes else 2**31 - 1
        num_blocks = count_blocks(
            self.kv_shape, request.block_size, request.kv_bytes or int(free * memory.KV_SHARE), wanted
        )
        limits = Limits(
            block_size=request.block_size,
            num_blocks=num_blocks,
            max_sequences=request.max_sequences,
            max_step_tokens=request.max_step_tokens,
            adapter_slots=request.adapter_slots,
            max_sequence_tokens=request.max_sequence_tokens,
        )
        pool = KvPool.allocate(self._kernels, self.kv_shape, num_blocks, request.block_size)
        self._model.prepare(pool, request.adapter_slots, request.max_sequence_tokens)
        sequences = Sequences(limits, self._model.config.vocab_size, DEVICE)
        slots = AdapterSlots(
            self._model.lora_tables(), request.adapter_slots, DEVICE, self.library.staged.get
        )
        self._runner = Runner(self._model, self._kernels, self._tp, sequences, slots)
        exercise(self._runner, limits)
        logger.info(
            "{} KV blocks of {} tokens, {} adapter slots", num_blocks, limits.block_size, limits.adapter_slots
        )
        return pb.WarmupResponse(
            num_blocks=num_blocks, adapter_bytes=request.adapter_bytes or int(free * memory.ADAPTER_SHARE)
        )

    def reset(self) -> None:
        """Empties every slot for a new Execute stream. Raises NotReadyError before Warmup."""
        self._ready().reset()

    def execute(self, step: pb.Step) -> pb.StepResult:
        """Computes one step. Raises ProtocolError, NotReadyError."""
        return self._ready().run(step)

    def _ready(self) -> Runner:
        if self._runner is None:
            raise NotReadyError("the shard has not been warmed up; call Warmup first")
        return self._runner


def _check(request: pb.WarmupRequest, max_positions: int) -> None:
    for name in ("block_size", "max_sequences", "max_step_tokens", "max_sequence_tokens"):
        if getattr(request, name) < 1:
            raise ConfigError(f"{name} must be at least 1")
    if request.max_sequence_tokens > max_positions:
        raise ConfigError(
            f"max_sequence_tokens is {request.max_sequence_tokens}, the model has {max_positions} positions"
        )
