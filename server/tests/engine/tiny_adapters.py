"""Random PEFT adapters for a tiny model, saved as their trainer would."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


def save_adapter(model: Any, directory: Path, seed: int, **settings: Any) -> None:
    """Wraps `model`, gives A and B random values, saves the adapter, and takes it off again."""
    settings = {"r": 8, "lora_alpha": 16, "target_modules": ALL} | settings
    config = LoraConfig(task_type="CAUSAL_LM", **settings)
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    wrapped.save_pretrained(directory)
    wrapped.unload()


def with_adapter(model: Any, directory: Path) -> PeftModel:
    """`model` with an adapter as PEFT applies it; `unload()` it before the next."""
    return PeftModel.from_pretrained(model, directory).eval()
