"""Which options of a PEFT config change the numbers, and which do not.

Every key of `adapter_config.json` falls in one of these tables or is read by `config`. A key in none of them
is accepted only while it is off (null, false, empty): it may come from a newer PEFT, and off means that it
does nothing.
"""

from typing import Any

from lorikeet_server.adapters.strict_json import shown, wrong_value
from lorikeet_server.errors import InvalidAdapterError

# Read and applied by `config`.
APPLIED = frozenset(
    {
        "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "rank_pattern",
        "alpha_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
        "init_lora_weights",
    }
)  # fmt: skip

# Any value gives the same numbers at inference: about training, initialisation, provenance or how PEFT itself
# runs. The configs of initialisations count only together with `init_lora_weights`, which is checked apart.
IGNORED = frozenset(
    {
        "peft_version", "revision", "auto_mapping", "inference_mode", "lora_dropout", "runtime_config",
        "megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
        "merge_weights",
        "lora_dtype", "lorap_lr_ratio", "lorap_emb_lr",  # written by ms-swift
    }
)  # fmt: skip

# Off or refused: each changes what the model computes in a way that this server does not reproduce.
REFUSED = {
    "use_dora": "DoRA is not supported; merge the adapter, or train it with use_dora=false",
    "lora_bias": "a bias in lora_B is not supported",
    "modules_to_save": "fully trained modules are not supported; train with LoRA on linear modules only",
    "trainable_token_indices": "trained token embeddings are not supported",
    "layer_replication": "replicated layers are not supported",
    "alora_invocation_tokens": "activated LoRA is not supported",
    "use_qalora": "QA-LoRA is not supported",
    "use_bdlora": "block-diagonal LoRA is not supported",
    "target_parameters": "LoRA on bare parameters is not supported; use target_modules",
    "arrow_config": "Arrow routing is not supported",
    "kasa_config": "KaSA changes the base weights and is not supported",
    "velora_config": "VeLoRA is not supported",
    "monteclora_config": "MonteCLoRA is not supported",
    "megatron_config": "Megatron layers are not supported",
    "ensure_weight_tying": "tied adapters are not supported",
    "enable_lora": "merged linear layers of old PEFT versions are not supported",
    "fan_in_fan_out": "transposed weights are not supported; no module of this model is stored that way",
}

# Of these PEFT takes an empty object for one of defaults, and so for on.
ON_WHEN_EMPTY = frozenset({"use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config"})

# `init_lora_weights` only says how training began, except where it also rewrote the base weights.
HARMLESS_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica"})
REWRITING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def check_options(config: dict[str, Any]) -> None:
    """Raises `InvalidAdapterError` naming an option that changes the numbers and is not applied."""
    for key, reason in REFUSED.items():
        if _is_on(config.get(key)) or (key in ON_WHEN_EMPTY and config.get(key) == {}):
            raise InvalidAdapterError(f"adapter_config.json sets {key} to {shown(config[key])}: {reason}")
    bias = config.get("bias", "none")
    if bias not in (None, "none"):
        raise wrong_value("bias", bias, '"none"')
    _check_init(config.get("init_lora_weights", True))
    for key, value in config.items():
        known = key in APPLIED or key in IGNORED or key in REFUSED or key == "bias"
        if not known and _is_on(value):
            raise InvalidAdapterError(
                f"adapter_config.json sets {shown(key)} to {shown(value)}, an option unknown to this server"
            )


def _check_init(init: Any) -> None:
    if init is None or isinstance(init, bool):
        return
    name = init.lower() if isinstance(init, str) else ""
    if name in HARMLESS_INITS:
        return
    if name.startswith(REWRITING_INITS):
        raise InvalidAdapterError(
            f"adapter_config.json sets init_lora_weights to {shown(init)}, which rewrites the base weights; "
            "save the adapter with path_initial_model_for_weight_conversion to turn it into plain LoRA"
        )
    raise wrong_value("init_lora_weights", init, "an initialisation that PEFT knows")


def _is_on(value: Any) -> bool:
    return value is not None and value is not False and value not in ("", 0) and value != [] and value != {}
