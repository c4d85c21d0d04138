"""Seeded tiny models, and a stand-in for the router that drives an engine through the step protocol."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from lorikeet_server.adapters.base_weights import base_weights
from lorikeet_server.adapters.library import AdapterLibrary, ServedModel
from lorikeet_server.adapters.store import Store
from lorikeet_server.device.base import Device
from lorikeet_server.device.choose import open_device
from lorikeet_server.dist import TensorParallel
from lorikeet_server.engine.engine import Engine, Identity
from lorikeet_server.kernels import Kernels, select
from lorikeet_server.models import registry
from lorikeet_server.pb import shard_pb2 as pb
from lorikeet_server.weights import open_source

BLOCK = 16
FAMILIES = {"gemma2": "Gemma2", "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def tiny_model(directory: Path, family: str = "llama", seed: int = 0, **settings: Any) -> Any:
    """A transformers model with random weights, saved to `directory`. Grouped heads, and sizes that no vector
    width divides."""
    name = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(
        **{
            "vocab_size": 199,
            "hidden_size": 48,
            "intermediate_size": 88,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            "use_cache": True,
            "attn_implementation": "eager",  # transformers 5.17 gives Gemma 2 one that leaves soft caps out
            **settings,
        }
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Wide enough for distinct logits; biases and norms too, which start as zeros and ones.
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    return model


def make_engine(
    path: Path,
    store: Path,
    backend: str = "reference",
    roots: Sequence[Path] = (),
    tp: TensorParallel | None = None,
    mode: Any = "float32",
    kernels: Kernels | None = None,
    device: Device | None = None,
) -> Engine:
    """An engine over the model at `path`, not yet warmed up."""
    tp = tp or TensorParallel()
    kernels, source = kernels or select(backend), open_source(path)
    device = device or open_device(kernels.device)
    model = registry.load(source, kernels, mode, tp)
    served = ServedModel(
        names=["tiny"],
        targets=model.lora_targets(),
        adapter_dtype=getattr(torch, mode),
        base_weights=base_weights(source, model.embedding_weights),
        layout=kernels.lora_layout,
        pinned_memory=kernels.device.type == "cuda",
    )
    library = AdapterLibrary(served, [str(root) for root in roots], Store(str(store), 0))
    identity = Identity("tiny", source.digest, mode, "test")
    return Engine(identity, model, kernels, device, tp, library, kernels.dtype)


def warmup_request(**settings: int) -> pb.WarmupRequest:
    sizes = {
        "block_size": BLOCK,
        "max_sequences": 8,
        "max_step_tokens": 256,
        "adapter_slots": 4,
        "kv_bytes": 1 << 24,
        "max_sequence_tokens": 256,
    }
    return pb.WarmupRequest(**(sizes | settings))


@dataclass
class Run:
    """What a driver has seen of one sequence."""

    slot: int
    prompt: list[int]
    blocks: list[int] = field(default_factory=list)
    length: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[list[tuple[int, float]]] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)
    prompt_top: list[tuple[int, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Driver:
    """Admits sequences, cuts prompts into chunks, hands out blocks, decodes. One step at a time."""

    def __init__(self, engine: Engine, num_blocks: int = 200) -> None:
        self.engine = engine
        # From the end, and interleaved between sequences, so that tables are never in order by accident.
        self.free = list(range(num_blocks))
        self.runs: dict[int, Run] = {}
        self.id = 0

    def admit(
        self, step: pb.Step, slot: int, prompt: Sequence[int], cached: "Run | None" = None, **settings: Any
    ) -> Run:
        """Adds an admission to `step`. `cached`: reuse that run's full blocks of the same tokens."""
        run = self.runs[slot] = Run(slot, list(prompt))
        sampling = settings.pop("sampling", pb.Sampling())
        admission = pb.Admission(slot=slot, sampling=sampling, **({"adapter_slot": -1} | settings))
        if cached is not None:
            shared = 0
            while (shared + 1) * BLOCK < len(prompt) and (
                list(prompt[: (shared + 1) * BLOCK]) == cached.prompt[: (shared + 1) * BLOCK]
            ):
                shared += 1
            run.blocks, run.length = cached.blocks[:shared], shared * BLOCK
            admission.blocks.extend(run.blocks)
            admission.cached_tokens = run.length
        step.admissions.append(admission)
        return run

    def prefill(self, step: pb.Step, run: Run, count: int | None = None) -> None:
        """Adds the next `count` prompt tokens of a sequence; the last chunk samples."""
        end = min(len(run.prompt), run.length + (count or len(run.prompt)))
        rows, done = step.prefill, end == len(run.prompt)
        new = self._grow(run, end)
        rows.slot.append(run.slot)
        rows.start.append(run.length)
        rows.length.append(end - run.length)
        rows.tokens.extend(run.prompt[run.length : end])
        rows.new_blocks.append(len(new))
        rows.blocks.extend(new)
        rows.sample.append(done)
        rows.next_token.append(0 if done else run.prompt[end])
        run.length = end

    def decode(self, step: pb.Step, *runs: Run) -> None:
        for run in runs:
            new = self._grow(run, run.length + 1)
            step.decode.slot.append(run.slot)
            step.decode.new_blocks.append(len(new))
            step.decode.blocks.extend(new)
            run.length += 1

    def execute(self, step: pb.Step) -> pb.StepResult:
        """Runs a step and files its result."""
        self.id += 1
        step.id = self.id
        with torch.inference_mode():
            result = self.engine.execute(step)
        assert result.id == self.id
        self.file(result)
        return result

    def file(self, result: pb.StepResult) -> None:
        at = 0
        for i, slot in enumerate(result.slot):
            run = self.runs[slot]
            run.tokens.append(result.token[i])
            run.logprobs.append(result.logprob[i])
            end = at + result.alternatives[i]
            run.alternatives.append(
                list(zip(result.alternative_tokens[at:end], result.alternative_logprobs[at:end], strict=True))
            )
            at = end
        for part in result.prompt_logprobs:
            run = self.runs[part.slot]
            assert part.start == len(run.prompt_logprobs)
            run.prompt_logprobs.extend(part.logprobs)
            run.prompt_top.extend(zip(part.top_tokens, part.top_logprobs, strict=True))
        for error in result.errors:
            self.runs[error.slot].errors.append(error.code)

    def release(self, *runs: Run) -> None:
        self.execute(pb.Step(releases=[run.slot for run in runs]))
        for run in runs:
            del self.runs[run.slot]

    def generate(
        self, prompts: Sequence[Sequence[int]], count: int, chunk: int | None = None, **settings: Any
    ) -> list[Run]:
        """`count` tokens for each prompt, all in one batch; then the slots are free again."""
        step = pb.Step()
        runs = [self.admit(step, slot, prompt, **settings) for slot, prompt in enumerate(prompts)]
        while any(run.length < len(run.prompt) for run in runs):
            for run in runs:
                if run.length < len(run.prompt):
                    self.prefill(step, run, chunk)
            self.execute(step)
            step = pb.Step()
        while len(runs[0].tokens) < count:
            step = pb.Step()
            self.decode(step, *runs)
            self.execute(step)
        self.release(*runs)
        return runs

    def _grow(self, run: Run, length: int) -> list[int]:
        new = []
        while (len(run.blocks) + len(new)) * BLOCK < length:
            new.append(self.free.pop())
        run.blocks = run.blocks + new
        return new


def expected_tokens(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy continuation by transformers, without its cache."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def expected_logprobs(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Log-probabilities `[tokens, vocab]` by transformers."""
    with torch.inference_mode():
        return model(torch.tensor([list(tokens)])).logits[0].log_softmax(-1)


def prompt_of(length: int, seed: int, vocab: int = 199) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab, (length,), generator=generator).tolist()
