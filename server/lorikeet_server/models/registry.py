"""Architecture name -> family, imported only when asked for."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from loguru import logger

from lorikeet_server.dist import TensorParallel
from lorikeet_server.errors import ModelError
from lorikeet_server.kernels import Kernels, LinearMode
from lorikeet_server.layers.build import Build
from lorikeet_server.models.causal_lm import CausalLM
from lorikeet_server.models.config import ModelConfig, architecture
from lorikeet_server.weights import WeightSource

FAMILIES = {
    "Gemma2ForCausalLM": "gemma2",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


def configure(raw: dict[str, Any]) -> ModelConfig:
    """config.json as its family understands it. Raises ModelError for an architecture that is not served."""
    name = architecture(raw)
    if name not in FAMILIES:
        raise ModelError(f"architecture {name} is not supported; known: {', '.join(sorted(FAMILIES))}")
    family = import_module(f"lorikeet_server.models.{FAMILIES[name]}")
    read: Callable[[dict[str, Any]], ModelConfig] = family.configure
    return read(raw)


def load(source: WeightSource, kernels: Kernels, mode: LinearMode, tp: TensorParallel) -> CausalLM:
    """Reads this rank's share of the weights and packs it. Raises ModelError or WeightsError."""
    config = configure(source.config)
    build = Build(source, kernels, mode, tp)
    model = CausalLM(config, build)
    if unused := build.unused():
        # transformers ignores them too, so the numbers are the same.
        logger.warning("{} tensors of the checkpoint are not used, e.g. {}", len(unused), unused[0])
    return model
