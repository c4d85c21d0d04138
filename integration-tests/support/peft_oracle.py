"""What transformers + PEFT answer in fp32: the truth that the server is held to."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


class Oracle:
    """Greedy continuations and their log-probabilities, for the base (adapter `None`) or an adapter's
    directory.
    """

    def __init__(self, model: Path) -> None:
        self.base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.peft: PeftModel | None = None

    def _select(self, adapter: Path | None) -> torch.nn.Module:
        if adapter is None:
            return self.base if self.peft is None else self.peft.get_base_model()
        if self.peft is None:
            self.peft = PeftModel.from_pretrained(self.base, adapter, adapter_name=adapter.name).eval()
        elif adapter.name not in self.peft.peft_config:
            self.peft.load_adapter(adapter, adapter_name=adapter.name)
        self.peft.set_adapter(adapter.name)
        return self.peft

    @torch.inference_mode()
    def greedy(
        self, prompt: list[int], tokens: int, adapter: Path | None = None
    ) -> tuple[list[int], list[float]]:
        """`tokens` greedy tokens after `prompt` (EOS ignored) and the log-probability of each."""
        model = self._select(adapter)
        if adapter is None and self.peft is not None:
            with self.peft.disable_adapter():
                return self._run(model, prompt, tokens)
        return self._run(model, prompt, tokens)

    @staticmethod
    def _run(model: torch.nn.Module, prompt: list[int], tokens: int) -> tuple[list[int], list[float]]:
        ids, logprobs, cache = [], [], None
        step = torch.tensor([prompt])
        for _ in range(tokens):
            output = model(input_ids=step, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            distribution = output.logits[0, -1].float().log_softmax(-1)
            token = int(distribution.argmax())
            ids.append(token)
            logprobs.append(float(distribution[token]))
            step = torch.tensor([[token]])
        return ids, logprobs
