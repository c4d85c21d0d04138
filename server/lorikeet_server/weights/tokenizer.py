"""Tokenizer files from a GGUF vocabulary: what the Rust `tokenizers` crate and transformers both load.

Covers byte-level BPE (`tokenizer.ggml.model = gpt2`), the vocabulary of nearly every model since Llama 3. A
SentencePiece vocabulary is refused: its merges are not in the file, and guessing them would give other token
ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorikeet_server.weights.error import WeightsError
from lorikeet_server.weights.gguf_header import GgufHeader

_CONTROL, _USER_DEFINED = 3, 4

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace("{1,3}", "")


def _split(pattern: str) -> list[dict[str, Any]]:
    words = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [words, {**_BYTE_LEVEL, "use_regex": False}]


# By `tokenizer.ggml.pre`: how text is cut into words before merging. Getting this wrong gives ids that look
# fine.
_GPT2_WORDS = [{**_BYTE_LEVEL, "use_regex": True}]
_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": _GPT2_WORDS,
    "smollm": [{"type": "Digits", "individual_digits": True}, *_GPT2_WORDS],
    "llama-bpe": _split(_LLAMA3_WORDS),
    "qwen2": _split(_QWEN2_WORDS),
}


def tokenizer_json(header: GgufHeader, path: Path) -> dict[str, Any]:
    """The content of tokenizer.json. Raises WeightsError for a vocabulary that cannot be carried over
    exactly."""
    metadata = header.metadata
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if model != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise WeightsError(
            f"model file {path} has a {model}/{pre} vocabulary; put the model's tokenizer.json beside it"
        )
    tokens, merges = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.merges")
    if not tokens or merges is None:
        raise WeightsError(f"model file {path} has no vocabulary; put the model's tokenizer.json beside it")
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]},
        "post_processor": _begin_of_text(metadata, tokens),
        "decoder": {**_BYTE_LEVEL, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # Llama 3 keeps a word that is a token whole, even where its merges would not reach it.
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def tokenizer_config(header: GgufHeader) -> dict[str, Any]:
    """The content of tokenizer_config.json: special tokens by name and the chat template, if there is one."""
    metadata = header.metadata
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": _adds_bos(metadata),
        "add_prefix_space": False,
        "model_max_length": metadata.get(f"{metadata.get('general.architecture')}.context_length"),
    }
    for name, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None and index < len(tokens):
            config[f"{name}_token"] = tokens[index]
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return config


def _adds_bos(metadata: dict[str, Any]) -> bool:
    """Many files of Llama 3 do not say: its tokenizer.json does it by a post-processor, where converters did
    not look. llama.cpp knows it by the vocabulary too."""
    return bool(
        metadata.get("tokenizer.ggml.add_bos_token", metadata.get("tokenizer.ggml.pre") == "llama-bpe")
    )


def _begin_of_text(metadata: dict[str, Any], tokens: list[str]) -> dict[str, Any] | None:
    """A post-processor that puts the beginning-of-text token in front, for models trained so."""
    index = metadata.get("tokenizer.ggml.bos_token_id")
    if not _adds_bos(metadata) or index is None:
        return None
    token = tokens[index]
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    a, b = ({"Sequence": {"id": letter, "type_id": kind}} for letter, kind in (("A", 0), ("B", 1)))
    return {
        "type": "TemplateProcessing",
        "single": [first, a],
        "pair": [first, a, b],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }
