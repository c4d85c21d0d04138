from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoResponse(_message.Message):
    __slots__ = ("model_id", "base_digest", "dtype", "device_type", "architecture", "vocab_size", "max_position_embeddings", "rank", "world_size", "version", "synchronous_moves", "lora_targets", "local_rank", "endpoints", "token")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TYPE_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_POSITION_EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SYNCHRONOUS_MOVES_FIELD_NUMBER: _ClassVar[int]
    LORA_TARGETS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_RANK_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    base_digest: str
    dtype: str
    device_type: str
    architecture: str
    vocab_size: int
    max_position_embeddings: int
    rank: int
    world_size: int
    version: str
    synchronous_moves: bool
    lora_targets: _containers.RepeatedScalarFieldContainer[str]
    local_rank: int
    endpoints: _containers.RepeatedScalarFieldContainer[str]
    token: str
    def __init__(self, model_id: _Optional[str] = ..., base_digest: _Optional[str] = ..., dtype: _Optional[str] = ..., device_type: _Optional[str] = ..., architecture: _Optional[str] = ..., vocab_size: _Optional[int] = ..., max_position_embeddings: _Optional[int] = ..., rank: _Optional[int] = ..., world_size: _Optional[int] = ..., version: _Optional[str] = ..., synchronous_moves: _Optional[bool] = ..., lora_targets: _Optional[_Iterable[str]] = ..., local_rank: _Optional[int] = ..., endpoints: _Optional[_Iterable[str]] = ..., token: _Optional[str] = ...) -> None: ...

class WarmupRequest(_message.Message):
    __slots__ = ("block_size", "max_sequences", "max_step_tokens", "adapter_slots", "kv_bytes", "adapter_bytes", "max_sequence_tokens")
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_SLOTS_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    block_size: int
    max_sequences: int
    max_step_tokens: int
    adapter_slots: int
    kv_bytes: int
    adapter_bytes: int
    max_sequence_tokens: int
    def __init__(self, block_size: _Optional[int] = ..., max_sequences: _Optional[int] = ..., max_step_tokens: _Optional[int] = ..., adapter_slots: _Optional[int] = ..., kv_bytes: _Optional[int] = ..., adapter_bytes: _Optional[int] = ..., max_sequence_tokens: _Optional[int] = ...) -> None: ...

class WarmupResponse(_message.Message):
    __slots__ = ("num_blocks", "adapter_bytes")
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_BYTES_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    adapter_bytes: int
    def __init__(self, num_blocks: _Optional[int] = ..., adapter_bytes: _Optional[int] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "seed", "top_logprobs", "bias_tokens", "bias_values")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TYPICAL_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    BIAS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BIAS_VALUES_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    typical_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    seed: int
    top_logprobs: int
    bias_tokens: _containers.RepeatedScalarFieldContainer[int]
    bias_values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., typical_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., top_logprobs: _Optional[int] = ..., bias_tokens: _Optional[_Iterable[int]] = ..., bias_values: _Optional[_Iterable[float]] = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("slot", "adapter_slot", "sampling", "prompt_logprobs", "prompt_top_logprobs", "cached_tokens", "blocks", "history", "history_output")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_SLOT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    HISTORY_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    slot: int
    adapter_slot: int
    sampling: Sampling
    prompt_logprobs: bool
    prompt_top_logprobs: int
    cached_tokens: int
    blocks: _containers.RepeatedScalarFieldContainer[int]
    history: _containers.RepeatedScalarFieldContainer[int]
    history_output: int
    def __init__(self, slot: _Optional[int] = ..., adapter_slot: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., prompt_logprobs: _Optional[bool] = ..., prompt_top_logprobs: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., blocks: _Optional[_Iterable[int]] = ..., history: _Optional[_Iterable[int]] = ..., history_output: _Optional[int] = ...) -> None: ...

class Prefill(_message.Message):
    __slots__ = ("slot", "start", "length", "tokens", "new_blocks", "blocks", "sample", "next_token")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEW_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    slot: _containers.RepeatedScalarFieldContainer[int]
    start: _containers.RepeatedScalarFieldContainer[int]
    length: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    new_blocks: _containers.RepeatedScalarFieldContainer[int]
    blocks: _containers.RepeatedScalarFieldContainer[int]
    sample: _containers.RepeatedScalarFieldContainer[bool]
    next_token: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, slot: _Optional[_Iterable[int]] = ..., start: _Optional[_Iterable[int]] = ..., length: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[int]] = ..., new_blocks: _Optional[_Iterable[int]] = ..., blocks: _Optional[_Iterable[int]] = ..., sample: _Optional[_Iterable[bool]] = ..., next_token: _Optional[_Iterable[int]] = ...) -> None: ...

class Decode(_message.Message):
    __slots__ = ("slot", "new_blocks", "blocks")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    NEW_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    slot: _containers.RepeatedScalarFieldContainer[int]
    new_blocks: _containers.RepeatedScalarFieldContainer[int]
    blocks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, slot: _Optional[_Iterable[int]] = ..., new_blocks: _Optional[_Iterable[int]] = ..., blocks: _Optional[_Iterable[int]] = ...) -> None: ...

class AdapterMove(_message.Message):
    __slots__ = ("slot", "digest")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    slot: int
    digest: str
    def __init__(self, slot: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("id", "releases", "moves", "admissions", "prefill", "decode")
    ID_FIELD_NUMBER: _ClassVar[int]
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    ADMISSIONS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    id: int
    releases: _containers.RepeatedScalarFieldContainer[int]
    moves: _containers.RepeatedCompositeFieldContainer[AdapterMove]
    admissions: _containers.RepeatedCompositeFieldContainer[Admission]
    prefill: Prefill
    decode: Decode
    def __init__(self, id: _Optional[int] = ..., releases: _Optional[_Iterable[int]] = ..., moves: _Optional[_Iterable[_Union[AdapterMove, _Mapping]]] = ..., admissions: _Optional[_Iterable[_Union[Admission, _Mapping]]] = ..., prefill: _Optional[_Union[Prefill, _Mapping]] = ..., decode: _Optional[_Union[Decode, _Mapping]] = ...) -> None: ...

class PromptLogprobs(_message.Message):
    __slots__ = ("slot", "start", "logprobs", "top", "top_tokens", "top_logprobs")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    slot: int
    start: int
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    top: int
    top_tokens: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, slot: _Optional[int] = ..., start: _Optional[int] = ..., logprobs: _Optional[_Iterable[float]] = ..., top: _Optional[int] = ..., top_tokens: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class RowError(_message.Message):
    __slots__ = ("slot", "code", "message")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    slot: int
    code: str
    message: str
    def __init__(self, slot: _Optional[int] = ..., code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("id", "slot", "token", "logprob", "alternatives", "alternative_tokens", "alternative_logprobs", "prompt_logprobs", "errors", "adapter_slots_ready", "move_errors", "compute_us")
    ID_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_SLOTS_READY_FIELD_NUMBER: _ClassVar[int]
    MOVE_ERRORS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    id: int
    slot: _containers.RepeatedScalarFieldContainer[int]
    token: _containers.RepeatedScalarFieldContainer[int]
    logprob: _containers.RepeatedScalarFieldContainer[float]
    alternatives: _containers.RepeatedScalarFieldContainer[int]
    alternative_tokens: _containers.RepeatedScalarFieldContainer[int]
    alternative_logprobs: _containers.RepeatedScalarFieldContainer[float]
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[PromptLogprobs]
    errors: _containers.RepeatedCompositeFieldContainer[RowError]
    adapter_slots_ready: _containers.RepeatedScalarFieldContainer[int]
    move_errors: _containers.RepeatedCompositeFieldContainer[MoveError]
    compute_us: int
    def __init__(self, id: _Optional[int] = ..., slot: _Optional[_Iterable[int]] = ..., token: _Optional[_Iterable[int]] = ..., logprob: _Optional[_Iterable[float]] = ..., alternatives: _Optional[_Iterable[int]] = ..., alternative_tokens: _Optional[_Iterable[int]] = ..., alternative_logprobs: _Optional[_Iterable[float]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[PromptLogprobs, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[RowError, _Mapping]]] = ..., adapter_slots_ready: _Optional[_Iterable[int]] = ..., move_errors: _Optional[_Iterable[_Union[MoveError, _Mapping]]] = ..., compute_us: _Optional[int] = ...) -> None: ...

class MoveError(_message.Message):
    __slots__ = ("slot", "digest", "message")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    slot: int
    digest: str
    message: str
    def __init__(self, slot: _Optional[int] = ..., digest: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class FetchAdapterRequest(_message.Message):
    __slots__ = ("source", "id", "max_bytes")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    source: str
    id: str
    max_bytes: int
    def __init__(self, source: _Optional[str] = ..., id: _Optional[str] = ..., max_bytes: _Optional[int] = ...) -> None: ...

class FetchAdapterProgress(_message.Message):
    __slots__ = ("bytes_done", "bytes_total", "digest", "stored_bytes")
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes_done: int
    bytes_total: int
    digest: str
    stored_bytes: int
    def __init__(self, bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., digest: _Optional[str] = ..., stored_bytes: _Optional[int] = ...) -> None: ...

class StageAdapterRequest(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class StageAdapterResponse(_message.Message):
    __slots__ = ("host_bytes", "device_bytes", "max_rank")
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RANK_FIELD_NUMBER: _ClassVar[int]
    host_bytes: int
    device_bytes: int
    max_rank: int
    def __init__(self, host_bytes: _Optional[int] = ..., device_bytes: _Optional[int] = ..., max_rank: _Optional[int] = ...) -> None: ...

class DropAdapterRequest(_message.Message):
    __slots__ = ("digest", "from_store")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FROM_STORE_FIELD_NUMBER: _ClassVar[int]
    digest: str
    from_store: bool
    def __init__(self, digest: _Optional[str] = ..., from_store: _Optional[bool] = ...) -> None: ...

class DropAdapterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
