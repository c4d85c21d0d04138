"""What a shard does with adapters: fetch them into the store, stage them into memory, forget them.

Every method blocks: it belongs on a thread of low priority, never on the event loop or the compute thread.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch

from lorikeet_server.adapters.base_model import BaseModel
from lorikeet_server.adapters.base_weights import BaseWeight, repeated
from lorikeet_server.adapters.config import parse_config
from lorikeet_server.adapters.entry import StoredAdapter
from lorikeet_server.adapters.header import TensorInfo, parse_header
from lorikeet_server.adapters.intake import FetchProgress, take_in
from lorikeet_server.adapters.load import WEIGHTS_FILE, Reader, load, read_header
from lorikeet_server.adapters.module_names import ModuleNames
from lorikeet_server.adapters.plan import PlannedPair, plan
from lorikeet_server.adapters.source_local import Peek, open_local
from lorikeet_server.adapters.staged import StagedAdapter
from lorikeet_server.adapters.store import Store
from lorikeet_server.adapters.strict_json import shown
from lorikeet_server.adapters.targets import LoraTarget
from lorikeet_server.adapters.tiers import HostTier
from lorikeet_server.config import MAX_LORA_RANK
from lorikeet_server.errors import DataLossError, InvalidAdapterError, SourceUnavailableError
from lorikeet_server.kernels import PLAIN, LoraForm, LoraLayout

# A plan of hundreds of tensors takes milliseconds. It is asked for when an adapter is fetched and again when
# it is staged, and adapters of one recipe have the same.
_REMEMBERED_PLANS = 8


class Plan(NamedTuple):
    """What becomes of each tensor of an adapter's file."""

    tensors: Mapping[str, TensorInfo]
    pairs: tuple[PlannedPair, ...]
    repeated: Mapping[str, BaseWeight]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What adapters are checked against, and the dtype that they are kept in."""

    names: Sequence[str]
    targets: Sequence[LoraTarget]
    adapter_dtype: torch.dtype
    base_weights: Mapping[str, BaseWeight]  # that an adapter may repeat, by module as PEFT names it
    max_rank: int = MAX_LORA_RANK
    layout: LoraLayout = PLAIN  # as the kernels want it
    pinned_memory: bool = False  # host memory that a GPU can copy from by itself

    @property
    def form(self) -> LoraForm:
        """What its adapters have in common."""
        inputs = tuple(len(target.inputs) for target in self.targets)
        outputs = tuple(len(target.outputs) for target in self.targets)
        return LoraForm(inputs, outputs, self.adapter_dtype, self.layout)


@dataclass(slots=True)
class AdapterLibrary:
    """The adapters of one rank. Thread-safe."""

    model: ServedModel
    roots: Sequence[str]
    store: Store
    staged: HostTier = field(default_factory=HostTier)
    _modules: ModuleNames = field(init=False)  # that configs may speak of
    _plan_of: Callable[[bytes, bytes, int], Plan] = field(init=False)

    def __post_init__(self) -> None:
        self._modules = ModuleNames(
            [*(target.name for target in self.model.targets), *self.model.base_weights]
        )
        self._plan_of = lru_cache(_REMEMBERED_PLANS)(self._check)

    def fetch(self, source: str, adapter_id: str, max_bytes: int) -> Iterator[FetchProgress]:
        """Copy an adapter into the store; the last progress carries its digest. Closing it early undoes it.

        Everything but the values of its tensors is checked before a byte is copied. Raises
        `InvalidAdapterError`, `NotFoundError`, `TooLargeError`, `NoRoomError`, `SourceUnavailableError`.
        """
        if source != "local":
            raise InvalidAdapterError(f'adapter source {shown(source)} is not served here; use "local"')
        try:
            with open_local(self.roots, adapter_id) as opened:
                self._plan(opened.config, Peek(opened))
                yield from take_in(opened, self.store, max_bytes)
        except OSError as error:
            raise SourceUnavailableError(f"fetching {shown(adapter_id)} failed: {error.strerror}") from None

    def stage(self, digest: str) -> StagedAdapter:
        """Read an adapter from the store into memory, or find it there.

        Raises `InvalidAdapterError` naming the field or tensor, `NotFoundError`, `DataLossError`.
        """
        return self.staged.get_or_load(digest, lambda: self._load(digest))

    def drop(self, digest: str, from_store: bool) -> None:
        """Forget an adapter; one that is not there is not an error."""
        self.staged.drop(digest)
        if from_store:
            self.store.remove(digest)

    def unstage(self) -> None:
        """Forget all staged adapters; the store keeps them."""
        for digest in self.staged.digests():
            self.drop(digest, from_store=False)

    def _load(self, digest: str) -> StagedAdapter:
        with self.store.pinned(digest):
            try:
                with self.store.open(digest) as stored:
                    try:
                        return self._read(digest, stored)
                    finally:
                        stored.verify()  # on failure too: bytes that changed are not the adapter's fault
            except DataLossError:
                self.store.remove(digest)  # so that the next fetch brings good bytes
                raise

    def _read(self, digest: str, stored: StoredAdapter) -> StagedAdapter:
        tensors, pairs, again = self._plan(stored.config, stored)
        matrices = load(stored, tensors, pairs, again, self.model.form, pinned=self.model.pinned_memory)
        return StagedAdapter(digest, max(pair.rank for pair in pairs), matrices)

    def _plan(self, config_bytes: bytes, weights: Reader) -> Plan:
        """All checks that need no tensor data; leaves `weights` at the first tensor."""
        return self._plan_of(config_bytes, read_header(weights), weights.weights_bytes)

    def _check(self, config_bytes: bytes, header: bytes, weights_bytes: int) -> Plan:
        config = parse_config(config_bytes, self.model.max_rank, self._modules)
        BaseModel(self.model.names).check(config.base_model)
        # Two tensors each can be used. Twice that, so that one too many is still refused by its name.
        max_tensors = 4 * len(self.model.targets) + 64
        tensors = parse_header(header, weights_bytes, WEIGHTS_FILE, max_tensors)
        again = repeated(tensors, self.model.base_weights)
        own = {name: info for name, info in tensors.items() if name not in again}
        pairs = plan(config, own, self.model.targets, self.model.base_weights)
        return Plan(tensors, pairs, again)
