"""The facts about a model that its layers are built from, read from config.json."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lorikeet_server.errors import ModelError
from lorikeet_server.layers.rotary import Rope
from lorikeet_server.models.windows import LayerWindows, no_windows

MAX_SIZE = 2**31 - 1  # what the protocol and the kernels can count


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and switches of a pre-norm decoder with gated MLP and rotary positions."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm_eps: float
    rope: Rope
    tied: bool
    windows: LayerWindows
    attention_scale: float
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    sandwich_norms: bool = False  # after attention and MLP too
    norm_offset: float = 0.0  # what the checkpoint's norm weights leave out
    gelu: bool = False  # the gate goes through GELU by its tanh form; otherwise SiLU
    embedding_scale: float = 1.0
    attention_cap: float | None = None  # soft caps: x becomes cap * tanh(x / cap)
    logit_cap: float | None = None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"{self.num_heads} attention heads are not a multiple of {self.num_kv_heads} key/value heads"
            )
        if self.head_dim % 2:
            raise ModelError(f"heads of {self.head_dim} have no rotary positions, which turn pairs")

    @classmethod
    def from_hf(
        cls,
        raw: dict[str, Any],
        windows: Callable[[dict[str, Any]], LayerWindows] = no_windows,
        gelu: bool = False,
        **switches: bool,
    ) -> "ModelConfig":
        """The mapping that every family shares; `windows` and `switches` are what differs from Llama.

        Raises ModelError for what would change the numbers and is not computed here.
        """
        if raw.get("quantization_config"):
            raise ModelError("config.json has quantization_config; quantised checkpoints are not supported")
        activation, known = raw.get("hidden_act", "silu"), "gelu_pytorch_tanh" if gelu else "silu"
        if activation != known:
            raise ModelError(f"hidden_act {activation!r} in config.json is not supported; known: {known}")
        try:
            heads, hidden = _size(raw, "num_attention_heads"), _size(raw, "hidden_size")
            head_dim = _size(raw, "head_dim", hidden // heads)
            return cls(
                architecture=architecture(raw),
                vocab_size=_size(raw, "vocab_size"),
                hidden_size=hidden,
                intermediate_size=_size(raw, "intermediate_size"),
                num_layers=_size(raw, "num_hidden_layers"),
                num_heads=heads,
                num_kv_heads=_size(raw, "num_key_value_heads", heads),
                head_dim=head_dim,
                max_positions=_size(raw, "max_position_embeddings", 2048),
                norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
                rope=Rope.from_config(raw),
                tied=bool(raw.get("tie_word_embeddings", False)),
                windows=windows(raw),
                attention_scale=head_dim**-0.5,
                gelu=gelu,
                **switches,
            )
        except KeyError as error:
            raise ModelError(f"config.json lacks {error.args[0]}") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"config.json holds an unusable value: {error}") from error


def _size(raw: dict[str, Any], name: str, default: int | None = None) -> int:
    """A number that counts something, and so is at least 1; `default` where it is left out, null or 0."""
    size = int(raw[name] if default is None else raw.get(name) or default)
    if not 1 <= size <= MAX_SIZE:
        raise ModelError(f"{name} {size} in config.json is outside 1..{MAX_SIZE}")
    return size


def architecture(raw: dict[str, Any]) -> str:
    """The model class that config.json names."""
    names = raw.get("architectures")
    if not isinstance(names, list) or len(names) != 1:
        raise ModelError("config.json must name one architecture, e.g. LlamaForCausalLM")
    return str(names[0])
