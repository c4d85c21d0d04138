"""The shard without its wire: a loaded model, the adapters, and the runner of the current Warmup.

Not thread-safe: everything but `library` belongs to the compute thread.
"""

import gc
from dataclasses import dataclass

import torch
from loguru import logger

from lorikeet_server.adapters.device_memory import DevicePool, HostMemory
from lorikeet_server.adapters.library import AdapterLibrary
from lorikeet_server.adapters.slots import AdapterSlots
from lorikeet_server.device.base import Device
from lorikeet_server.dist import TensorParallel
from lorikeet_server.engine.limits import Limits, check
from lorikeet_server.engine.memory import GPU, HOST, divide, room_for
from lorikeet_server.engine.result import PendingResult
from lorikeet_server.engine.runner import Runner
from lorikeet_server.engine.sequences import Sequences
from lorikeet_server.engine.warmup import exercise, largest_steps, smallest_steps
from lorikeet_server.errors import NotReadyError
from lorikeet_server.kernels import Kernels
from lorikeet_server.kvcache.fresh_pages import FreshPages
from lorikeet_server.kvcache.pool import KvPool, KvShape, count_blocks
from lorikeet_server.models.causal_lm import CausalLM
from lorikeet_server.pb import shard_pb2 as pb


@dataclass(frozen=True, slots=True)
class Identity:
    """What `Info` says beyond the model's config."""

    model_id: str
    base_digest: str
    dtype: str
    version: str


@dataclass(frozen=True, slots=True)
class Warm:
    """What a Warmup allocated, and for which request."""

    request: pb.WarmupRequest
    response: pb.WarmupResponse
    runner: Runner


class Engine:
    """Answers Info, Warmup and steps."""

    def __init__(
        self,
        identity: Identity,
        model: CausalLM,
        kernels: Kernels,
        device: Device,
        tp: TensorParallel,
        library: AdapterLibrary,
        kv_dtype: torch.dtype,
    ) -> None:
        self.library = library
        self._identity, self._model, self._kernels, self._device = identity, model, kernels, device
        self._tp, self._kv_dtype = tp, kv_dtype
        self._warm: Warm | None = None

    @property
    def kv_shape(self) -> KvShape:
        config = self._model.config
        return KvShape(config.num_layers, self._model.kv_heads, config.head_dim, self._kv_dtype)

    def info(self) -> pb.InfoResponse:
        config = self._model.config
        return pb.InfoResponse(
            model_id=self._identity.model_id,
            base_digest=self._identity.base_digest,
            dtype=self._identity.dtype,
            device_type=self._device.where.type,
            architecture=config.architecture,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_positions,
            rank=self._tp.rank,
            world_size=self._tp.size,
            version=self._identity.version,
            synchronous_moves=not self._device.discrete,
            lora_targets=sorted({target.name.rsplit(".", 1)[-1] for target in self._model.lora_targets()}),
            local_rank=self._tp.local_rank,
            endpoints=self._tp.directory.endpoints,
            token=self._tp.directory.token if self._tp.rank == 0 else "",
        )

    @property
    def token(self) -> str:
        """What a router shows this rank, if it comes from another machine; else empty."""
        return self._tp.directory.token

    @room_for("steps of this size", "lower --max-batch-prefill-tokens or --max-batch-size")
    def warmup(self, request: pb.WarmupRequest) -> pb.WarmupResponse:
        """Allocates the KV pool and the adapter tables, and runs every kernel once. The same request again
        keeps what there is, with every slot emptied. Raises ConfigError, ModelError."""
        check(request, self._model.config.max_positions)
        if self._warm is not None and self._warm.request == request:
            self._warm.runner.reset()
            return self._warm.response
        # What an earlier call allocated is free again, and nothing reads it, before this one measures.
        self._device.synchronize()
        self._warm = None
        self._release()
        free, activations = self._device.available_bytes(), self._activations(request)
        shares = GPU if self._device.discrete else HOST
        split = divide(free, activations, request.kv_bytes, request.adapter_bytes, shares)
        longest = -(-request.max_sequence_tokens // request.block_size)
        # With no size given, more blocks than every slot at full length can use would only be cache.
        wanted = request.max_sequences * longest if not request.kv_bytes else 2**31 - 1
        num_blocks = count_blocks(self.kv_shape, request.block_size, split.kv, wanted)
        runner = self._allocate(request, num_blocks, split.adapters)
        exercise(runner, smallest_steps(runner.limits))
        runner.capture()
        logger.info(
            "{} KV blocks of {} tokens, {} adapter slots",
            num_blocks,
            request.block_size,
            request.adapter_slots,
        )
        response = pb.WarmupResponse(num_blocks=num_blocks, adapter_bytes=split.adapters)
        self._warm = Warm(request, response, runner)
        return response

    def reset(self) -> None:
        """Empties every slot for a new Execute stream. Raises NotReadyError before Warmup."""
        self._ready().reset()

    def take_ahead(self) -> bool:
        """Work for a moment without steps: prepares a little for later ones; False if nothing is left."""
        return self._warm is not None and self._warm.runner.take_ahead()

    def launch(self, step: pb.Step) -> PendingResult:
        """Calls for one step, and waits for nothing. Raises ProtocolError, NotReadyError, DeviceError."""
        return self._ready().run(step)

    def execute(self, step: pb.Step) -> pb.StepResult:
        """Computes one step. Raises as `launch` does."""
        return self.launch(step).wait()

    def abandon(self) -> bool:
        """This rank computes no more steps, and tells its peers, who wait for it inside collectives. False
        for a group of one, where nobody does."""
        if self._tp.bond is not None:
            self._tp.bond.sever()
        return self._tp.size > 1

    def _ready(self) -> Runner:
        if self._warm is None:
            raise NotReadyError("the shard has not been warmed up; call Warmup first")
        return self._warm.runner

    def _allocate(self, request: pb.WarmupRequest, num_blocks: int, adapter_bytes: int) -> Runner:
        limits = Limits.of(request, num_blocks)
        pool = KvPool.allocate(self._kernels, self.kv_shape, num_blocks, request.block_size)
        model, device = self._model, self._device
        sizes = request.adapter_slots, request.max_sequence_tokens, request.max_step_tokens
        model.prepare(pool, *sizes, self.library.model.max_rank)
        self._kernels.reserve(model.attention_shapes, limits.max_decodes)
        sequences = Sequences(limits, model.config.vocab_size, device)
        memory = (
            DevicePool(device, adapter_bytes if request.adapter_slots else 0)
            if device.discrete
            else HostMemory()
        )
        slots = AdapterSlots(model.adapters, memory, self.library.staged.get)
        fresh = None if device.discrete else FreshPages(pool)
        return Runner(model, self._kernels, device, self._tp, sequences, slots, fresh)

    def _release(self) -> None:
        """Frees what was allocated for a runner that is gone. Tables and their parts refer to each other."""
        self._model.release()
        gc.collect()

    def _activations(self, request: pb.WarmupRequest) -> int:
        """Bytes that steps need beside weights, KV and adapters, measured on the largest ones, with what
        captured decodes keep for themselves. A host need not know: it gives memory as it is touched."""
        if not self._device.discrete:
            return 0
        blocks = request.max_step_tokens // request.block_size + request.max_sequences
        cache = self.kv_shape.bytes_per_token * request.block_size * (blocks + 1)

        runners: list[Runner] = []

        def largest() -> None:
            runners.append(self._allocate(request, blocks, 0))
            exercise(runners[0], largest_steps(runners[0].limits))

        peak = self._device.peak_bytes(largest)
        captured = self._device.peak_bytes(lambda: runners.pop().capture(largest=True))
        self._release()
        return max(0, peak - cache) + captured
