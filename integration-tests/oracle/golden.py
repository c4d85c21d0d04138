"""Reads `golden.json` for tests. Needs neither torch nor transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

STABLE = 1e-3
"""The least margin at which two correct fp32 implementations must pick the same token."""


@dataclass(frozen=True)
class Case:
    """A prompt and what the model must answer to it. `adapter` None: the base model.

    `rendered` is the text that the model sees (`text` through the chat template if `chat`), `ids` its tokens.
    """

    adapter: str | None
    prompt: str
    text: str
    chat: bool
    rendered: str
    ids: list[int]
    tokens: list[int]
    logprobs: list[float]
    margins: list[float]
    finish: str
    answer: str

    @property
    def stable(self) -> int:
        """How many of the first tokens are beyond doubt: those before the first margin below STABLE."""
        for index, margin in enumerate(self.margins):
            if margin < STABLE:
                return index
        return len(self.margins)


@cache
def cases() -> list[Case]:
    """Every prompt with every adapter and the base."""
    content = json.loads(Path(__file__).with_name("golden.json").read_text())
    prompts = {prompt["name"]: prompt for prompt in content["prompts"]}
    return [
        Case(
            adapter=answer["adapter"],
            prompt=answer["prompt"],
            **{key: prompts[answer["prompt"]][key] for key in ("text", "chat", "rendered", "ids")},
            **{key: answer[key] for key in ("tokens", "logprobs", "margins", "finish")},
            answer=answer["text"],
        )
        for answer in content["answers"]
    ]


@cache
def adapter_digests() -> dict[str, str]:
    """sha256 of each adapter's weights at the time the file was made."""
    digests: dict[str, str] = json.loads(Path(__file__).with_name("golden.json").read_text())["adapters"]
    return digests
