"""Which tensor of an adapter's file goes to which module, from names and shapes alone.

Every module that the config targets must have its A and B, and every tensor must belong to one; PEFT warns
about either and serves something else.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lorikeet_server.adapters.config import AdapterConfig
from lorikeet_server.adapters.header import TensorInfo
from lorikeet_server.adapters.targets import LoraTarget
from lorikeet_server.errors import InvalidAdapterError

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_NO_EMBEDDING = "LoRA on an embedding is not supported"
_KINDS = {
    ".lora_embedding_": _NO_EMBEDDING,
    ".lora_magnitude_vector": "DoRA is not supported",
    ".modules_to_save.": "fully trained modules are not supported",
    ".base_layer.": "it is a base weight; only those of lm_head and embed_tokens may be repeated",
    ".bias": "trained biases are not supported",
}


class PlannedPair(NamedTuple):
    """A and B of one module: their names in the file, and what becomes of them."""

    target: LoraTarget
    slice_index: int  # of the target, and so of the slice
    rank: int
    scale: float
    a: str
    b: str


def plan(
    config: AdapterConfig,
    tensors: Mapping[str, TensorInfo],
    targets: Sequence[LoraTarget],
    embeddings: Iterable[str] = (),
) -> tuple[PlannedPair, ...]:
    """Pairs in the order of `targets`. Raises `InvalidAdapterError` naming the tensor or module; of
    `embeddings` those that are no target may not be meant."""
    known = {target.name: target for target in targets}
    found: dict[tuple[str, str], str] = {}
    for name in tensors:
        module, side = _module_of(name)
        if module not in known:
            raise InvalidAdapterError(
                f"tensor {name} belongs to {module}, which this model does not have or cannot adapt; "
                f"adapters may target {', '.join(sorted({n.rpartition('.')[2] for n in known}))}"
            )
        if (module, side) in found:
            raise InvalidAdapterError(f"tensors {found[module, side]} and {name} are the same matrix")
        found[module, side] = name
    for name in embeddings:
        if name not in known and config.targets(name):
            raise InvalidAdapterError(f"adapter_config.json targets {name}: {_NO_EMBEDDING}")
    wanted = [(index, target) for index, target in enumerate(targets) if config.targets(target.name)]
    if not wanted:
        raise InvalidAdapterError("target_modules of adapter_config.json matches no module of this model")
    pairs = tuple(_pair(config, target, index, tensors, found) for index, target in wanted)
    if found:
        raise InvalidAdapterError(
            f"tensor {next(iter(found.values()))} is of a module that adapter_config.json does not target"
        )
    return pairs


def _module_of(name: str) -> tuple[str, str]:
    key = _KEY.fullmatch(name)
    if key is not None:
        return key["module"], key["side"]
    reason = next(
        (reason for part, reason in _KINDS.items() if part in name),
        "it is not a LoRA matrix known to PEFT, as base_model.model.MODULE.lora_A.weight is",
    )
    raise InvalidAdapterError(f"tensor {name} cannot be used: {reason}")


def _pair(
    config: AdapterConfig,
    target: LoraTarget,
    index: int,
    tensors: Mapping[str, TensorInfo],
    found: dict[tuple[str, str], str],
) -> PlannedPair:
    scaling = config.scaling(target.name)
    sides = []
    for side, shape in (
        ("A", (scaling.rank, target.in_features)),
        ("B", (target.out_features, scaling.rank)),
    ):
        name = found.pop((target.name, side), None)
        if name is None:
            raise InvalidAdapterError(
                f"adapter_config.json targets {target.name} and the file has no lora_{side} for it"
            )
        if tensors[name].shape != shape:
            raise InvalidAdapterError(
                f"tensor {name} has the shape {list(tensors[name].shape)}; this model and a rank of "
                f"{scaling.rank} (r, rank_pattern) need {list(shape)}"
            )
        sides.append(name)
    return PlannedPair(target, index, scaling.rank, scaling.scale, *sides)
