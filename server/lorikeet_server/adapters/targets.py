"""The linear modules of the served model that an adapter may change, as this rank holds them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoraTarget:
    """One module as PEFT names it, its full shape, and where its A and B live on this rank.

    `inputs` and `outputs` are the columns of A and the rows of B that this rank holds: everything without
    tensor parallelism; a column-parallel module narrows `outputs`, a row-parallel one `inputs`. A model's
    targets are in the order of its slices (`LoraForm`).
    """

    name: str  # "model.layers.3.self_attn.q_proj"
    in_features: int
    out_features: int
    inputs: range
    outputs: range

    def __post_init__(self) -> None:
        for held, size in ((self.inputs, self.in_features), (self.outputs, self.out_features)):
            if held.step != 1 or not 0 <= held.start < held.stop <= size:
                raise ValueError(f"{self.name}: {held} is not a part of 0..{size}")
