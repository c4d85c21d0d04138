"""transformers + PEFT in this process: the peer that always installs. Eager fp32, one static batch, KV
cache.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


class PeftPeer:
    def __init__(self, model: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.mixed: PeftModel | None = None

    def add(self, adapters: list[Path]) -> None:
        for adapter in adapters:
            if self.mixed is None:
                self.mixed = PeftModel.from_pretrained(self.model, adapter, adapter_name=adapter.name).eval()
            else:
                self.mixed.load_adapter(adapter, adapter_name=adapter.name)

    @torch.inference_mode()
    def tokens_per_second(
        self, batch: int, prompt: list[int], tokens: int, adapters: list[str] | None, runs: int
    ) -> float:
        """Median over `runs` of generated tokens per second for `batch` equal prompts; row i under
        `adapters[i]`.
        """
        if adapters is None:
            model, extra = self.model, {}
        else:
            assert self.mixed is not None
            model, extra = self.mixed, {"adapter_names": adapters}
        ids = torch.tensor([prompt] * batch)
        rates = []
        for _ in range(runs + 1):
            started = time.perf_counter()
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                **extra,
            )
            rates.append(batch * tokens / (time.perf_counter() - started))
        return statistics.median(rates[1:])  # the first warms up
