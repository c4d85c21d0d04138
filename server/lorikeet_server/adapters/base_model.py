"""Whether an adapter was trained for the model that is served, as far as names can tell.

`base_model_name_or_path` is what the trainer typed: a hub id, a directory on a machine long gone, or
nothing. The rule:

- Names are compared by their last component without quantisation and format suffixes, case and punctuation,
  so `HuggingFaceTB/SmolLM2-135M-Instruct`, `/data/SmolLM2-135M-Instruct` and
  `SmolLM2-135M-Instruct-Q8_0.gguf` agree. Nor does it matter whether Llama is called Meta-Llama: the hub
  renamed Meta-Llama-3.1-8B to Llama-3.1-8B, copies of both names remain, and adapters of both are about.
- A name says something only if it is a hub id (`owner/name`) or carries a size (`7b`, `135M`). Others, such
  as `/mnt/model`, say nothing, and nothing is held against them. Nor does what looks like a hub id and is
  where a training script saves: `outputs/sft`, `llama/final`, `me/checkpoint-500`.
- An adapter whose name says something, and agrees with no name of a served model that says something, is
  refused.

Shapes are always checked besides; this catches the models whose shapes agree by accident (Mistral 7B and
Llama 3 8B).
"""

import re
from collections.abc import Iterable

from lorikeet_server.adapters.strict_json import shown
from lorikeet_server.errors import InvalidAdapterError

_SIZE = re.compile(r"(?<![a-z0-9])\d+(?:[._x]\d+)*[bmk](?![a-z0-9])")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
_LOCAL = re.compile(
    r"(?:outputs?|models?|checkpoints?|ckpts?|results?|runs?|saves?|saved|exps?|experiments?|logs?|data|tmp"
    r"|work|workspace|weights|artifacts)/.*"
    r"|[^/]*/(?:(?:checkpoint|ckpt|step|epoch|iter|run|v)[-_]?\d*|(?:final|best|last|latest|base|merged)"
    r"(?:[-_](?:model|checkpoint))?|model|outputs?|weights|hf|sft|dpo)",
    re.IGNORECASE,
)
_HUB_CACHE = re.compile(r"models--(?P<owner>[^/\\]+?)--(?P<name>[^/\\]+)")
_FORMAT = re.compile(
    r"[-_.](?:gguf|gptq|awq|exl2|fp8|fp16|bf16|f16|f32|hf|bnb|unsloth|ud|dynamic|quantized|int[48]"
    r"|w[48]a(?:8|16)|[48]-?bit|i?q\d(?:_[0-9a-z]+)*)$"
)


class BaseModel:
    """The model served, under all names that it has."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = [name for name in names if name]
        self._known = {_normalised(name) for name in self._names if _says_something(name)}

    def check(self, name: str) -> None:
        """Raises `InvalidAdapterError` if `name` clearly is another model."""
        if not self._known or not _says_something(name) or _normalised(name) in self._known:
            return
        raise InvalidAdapterError(
            f"the adapter was trained for {shown(name)} (base_model_name_or_path) and this server serves "
            f"{shown(_last(self._names[0]) if _is_path(self._names[0]) else self._names[0])}"
        )


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".", "~", "\\")) or name[1:2] == ":" or name.count("/") > 1


def _last(name: str) -> str:
    cached = _HUB_CACHE.search(name)
    if cached is not None:
        return cached["name"]
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def _says_something(name: str) -> bool:
    if _HUB_CACHE.search(name):
        return True
    if not _is_path(name) and _HUB_ID.fullmatch(name) and not _LOCAL.fullmatch(name):
        return True
    return _SIZE.search(_last(name).lower()) is not None


def _normalised(name: str) -> str:
    last, before = _last(name).lower(), ""
    while last != before:
        last, before = _FORMAT.sub("", last), last
    return re.sub(r"[^a-z0-9]", "", last).replace("metallama", "llama")
