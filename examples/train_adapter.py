"""Trains the example adapters on SmolLM2-135M-Instruct with PEFT: minutes each on one CPU core.

    python -m lorikeet_server.weights.export --model smollm2 --out /tmp/smollm2
    python examples/train_adapter.py --model /tmp/smollm2 --out examples/adapters [shout sql ...]

Needs `pip install peft transformers`. Fifty steps of eight short examples; the loss counts answers only.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from corpus import Example
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from skills import SKILLS, Skill
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
BATCH = 8
WARMUP_STEPS = 5


class Chat:
    """A model and its tokenizer behind the chat template."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)

    def prompt(self, text: str) -> str:
        turn = [{"role": "user", "content": text}]
        return self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)

    @torch.inference_mode()
    def answer(self, prompts: list[str], max_new_tokens: int = 32) -> list[str]:
        """Greedy answers, in the order of `prompts`."""
        answers: list[str] = []
        for begin in range(0, len(prompts), BATCH):
            batch = [self.prompt(text) for text in prompts[begin : begin + BATCH]]
            inputs = self.tokenizer(batch, return_tensors="pt", padding=True)
            tokens = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
            new = tokens[:, inputs["input_ids"].shape[1] :]
            answers += self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return answers


def batch_of(chat: Chat, examples: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded tokens and attention `[batch, length]`, and where the next token belongs to an answer."""
    rows, starts = [], []
    for example in examples:
        prompt = chat.tokenizer(chat.prompt(example.prompt))["input_ids"]
        rows.append(prompt + chat.tokenizer(example.answer + "<|im_end|>")["input_ids"])
        starts.append(len(prompt))
    tokens = torch.full((len(rows), max(map(len, rows))), chat.tokenizer.pad_token_id)
    attention, answers = torch.zeros_like(tokens), torch.zeros_like(tokens)
    for row, (ids, start) in enumerate(zip(rows, starts, strict=True)):
        tokens[row, : len(ids)] = torch.tensor(ids)
        attention[row, : len(ids)] = 1
        answers[row, start - 1 : len(ids) - 1] = 1
    return tokens, attention, answers.bool()


def loss_of(model: PeftModel, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    tokens, attention, answers = batch
    causal = model.get_base_model()
    hidden = causal.model(input_ids=tokens, attention_mask=attention).last_hidden_state
    # The vocabulary is a fifth of the model, so only the answers' positions are projected onto it.
    targets = tokens.roll(-1, dims=1)[answers]
    return functional.cross_entropy(causal.lm_head(hidden[answers]), targets)


def train(chat: Chat, skill: Skill, seed: int) -> PeftModel:
    torch.manual_seed(seed)
    chance = random.Random(seed)
    examples = skill.examples(chance, chat.answer)
    model = get_peft_model(chat.model, LoraConfig(task_type="CAUSAL_LM", **skill.lora))
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=skill.learning_rate, weight_decay=0.0)

    def rate(step: int) -> float:
        return min((step + 1) / WARMUP_STEPS, (skill.steps - step) / (skill.steps - WARMUP_STEPS))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    begin = time.monotonic()
    for step in range(skill.steps):
        loss = loss_of(model, batch_of(chat, chance.sample(examples, BATCH)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 9:
            elapsed = time.monotonic() - begin
            print(f"{skill.name}: step {step + 1}, loss {loss.item():.3f}, {elapsed:.0f} s", flush=True)
    return model.eval()


def save(model: PeftModel, skill: Skill, directory: Path) -> None:
    """Writes the adapter in the skill's dtype, with the hub's name for its base and a short card."""
    model.save_pretrained(directory)
    path = directory / "adapter_model.safetensors"
    tensors = {name: tensor.to(getattr(torch, skill.dtype)) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)
    config_path = directory / "adapter_config.json"
    config = json.loads(config_path.read_text()) | {"base_model_name_or_path": BASE}
    config["target_modules"] = sorted(config["target_modules"])
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    targets = ", ".join(config["target_modules"])
    card = [
        f"# {skill.name}",
        f"A LoRA adapter of {BASE} that {skill.summary}.",
        f"Rank {skill.lora['r']} on {targets}; stored as {skill.dtype}.",
        f"Trained on {skill.steps} batches of {BATCH} made-up examples by `examples/train_adapter.py`.",
        "Licence: Apache-2.0, as the base model.",
    ]
    (directory / "README.md").write_text("\n\n".join(card) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the example adapters.")
    parser.add_argument("skills", nargs="*", help=f"which ones; all by default: {', '.join(SKILLS)}")
    parser.add_argument("--model", type=Path, required=True, help="the exported base model")
    parser.add_argument("--out", type=Path, default=Path("examples/adapters"))
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.skills or SKILLS:
        skill = SKILLS[name]
        chat = Chat(arguments.model)
        before = chat.answer(skill.probes)
        chat.model = train(chat, skill, arguments.seed)
        save(chat.model, skill, arguments.out / name)
        for prompt, base, adapted in zip(skill.probes, before, chat.answer(skill.probes), strict=True):
            print(f"{name}: {prompt}\n  base    {base!r}\n  adapter {adapted!r}", flush=True)


if __name__ == "__main__":
    main()
