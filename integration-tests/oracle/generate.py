"""Makes `golden.json`: greedy answers of SmolLM2 and the example adapters by transformers and PEFT in fp32.

    python integration-tests/oracle/generate.py [--model DIR]

Besides token and log-probability, every step keeps its margin: how far the best token's log-probability lies
above the second's. Two correct implementations in fp32 may only differ where the margin is near zero.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))

from lorikeet_server.weights.export import export
from oracle.prompts import PROMPTS, Prompt

GOLDEN = Path(__file__).with_name("golden.json")
ADAPTERS = Path(__file__).parents[2] / "examples" / "adapters"
MAX_NEW_TOKENS = 32
DIGITS = 5


@dataclass(frozen=True)
class Answer:
    """One greedy answer, up to and including the end token. `adapter` None: the base model.

    `logprobs` and `margins` are per token; `finish` is `eos_token` or `length`.
    """

    adapter: str | None
    prompt: str
    tokens: list[int]
    logprobs: list[float]
    margins: list[float]
    finish: str
    text: str


class Oracle:
    """SmolLM2 in transformers, with the adapters that it is asked for loaded through PEFT."""

    def __init__(self, model: Path, adapters: Path = ADAPTERS) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self._adapters = adapters
        self._base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self._end = self._base.config.eos_token_id
        self._peft: PeftModel | None = None

    def render(self, prompt: Prompt) -> str:
        """The text that the model sees."""
        if not prompt.chat:
            return prompt.text
        turn = [{"role": "user", "content": prompt.text}]
        return str(self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))

    def answer(self, prompt: Prompt, adapter: str | None, max_new_tokens: int = MAX_NEW_TOKENS) -> Answer:
        """The greedy answer to `prompt`, by the base model or an adapter."""
        ids = self.tokenizer(self.render(prompt))["input_ids"]
        with torch.inference_mode(), self._selected(adapter):
            steps = self._greedy(ids, max_new_tokens)
        tokens = [token for token, _, _ in steps]
        return Answer(
            adapter=adapter,
            prompt=prompt.name,
            tokens=tokens,
            logprobs=[round(logprob, DIGITS) for _, logprob, _ in steps],
            margins=[round(margin, DIGITS) for _, _, margin in steps],
            finish="eos_token" if tokens[-1] == self._end else "length",
            text=self.tokenizer.decode(tokens, skip_special_tokens=True),
        )

    def _selected(self, adapter: str | None) -> AbstractContextManager[Any]:
        if adapter is None:
            return nullcontext() if self._peft is None else self._peft.disable_adapter()
        if self._peft is None:
            self._peft = PeftModel.from_pretrained(self._base, self._adapters / adapter, adapter).eval()
        elif adapter not in self._peft.peft_config:
            self._peft.load_adapter(self._adapters / adapter, adapter)
        self._peft.set_adapter(adapter)
        return nullcontext()

    def _greedy(self, ids: list[int], max_new_tokens: int) -> list[tuple[int, float, float]]:
        model = self._peft or self._base
        steps: list[tuple[int, float, float]] = []
        output = model(input_ids=torch.tensor([ids]), use_cache=True)
        while True:
            best = output.logits[0, -1].double().log_softmax(-1).topk(2)
            token = int(best.indices[0])
            steps.append((token, float(best.values[0]), float(best.values[0] - best.values[1])))
            if token == self._end or len(steps) == max_new_tokens:
                return steps
            output = model(
                input_ids=torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True
            )


def digest(adapter: Path) -> str:
    """Tells whether the golden file was made from these very weights."""
    return sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


def generate_oracle(
    model: Path, adapters: Path, prompts: list[Prompt], max_new_tokens: int = MAX_NEW_TOKENS
) -> dict[str, Any]:
    """The golden file's content: each prompt, answered by the base and each adapter below `adapters`."""
    oracle = Oracle(model, adapters)
    names = sorted(path.parent.name for path in adapters.glob("*/adapter_config.json"))
    rendered = {prompt.name: oracle.render(prompt) for prompt in prompts}
    return {
        "max_new_tokens": max_new_tokens,
        "adapters": {name: digest(adapters / name) for name in names},
        "prompts": [
            {
                **asdict(prompt),
                "rendered": rendered[prompt.name],
                "ids": oracle.tokenizer(rendered[prompt.name])["input_ids"],
            }
            for prompt in prompts
        ],
        "answers": [
            asdict(oracle.answer(prompt, name, max_new_tokens))
            for name in [None, *names]
            for prompt in prompts
        ],
    }


def write(content: dict[str, Any], path: Path = GOLDEN) -> None:
    """Compact, but with one prompt or answer to a line, so that a difference can be read."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list):
            lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in value)
            parts.append(f'"{key}": [\n{lines}\n]')
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make oracle/golden.json.")
    parser.add_argument("--model", type=Path, help="SmolLM2 as exported; exported anew by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = arguments.model or export("smollm2", Path(scratch) / "model")
        write(generate_oracle(model, ADAPTERS, PROMPTS))


if __name__ == "__main__":
    main()
