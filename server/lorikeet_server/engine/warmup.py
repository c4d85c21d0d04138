"""Steps that no request asked for: small ones, so that the first request pays for no lazy initialisation, and
the largest there can be, to measure their memory."""

from collections.abc import Iterable

from lorikeet_server.engine.limits import Limits
from lorikeet_server.engine.runner import Runner
from lorikeet_server.errors import ModelError
from lorikeet_server.pb import shard_pb2 as pb

USUAL = pb.Sampling(temperature=1.0, top_p=0.9)
# What takes the most memory: a lane of counts, a copy of the scores, all tokens sorted, and alternatives.
LARGEST = pb.Sampling(temperature=1.0, top_p=0.9, typical_p=0.9, repetition_penalty=1.1, top_logprobs=1)


def exercise(runner: Runner, steps: Iterable[pb.Step]) -> None:
    """Runs the steps; afterwards every slot is empty again. Raises ModelError."""
    for step in steps:
        for error in runner.run(step, strict=True).wait().errors:
            hint = "; are there NaN or infinite weights?" if error.code == "numeric_error" else ""
            raise ModelError(f"the model does not run: {error.message}{hint}")
    runner.reset()


def smallest_steps(limits: Limits) -> list[pb.Step]:
    """One short prompt, and a decode of it."""
    length = min(16, limits.block_size, limits.max_step_tokens, limits.max_sequence_tokens)
    steps = [_prompts(1, length, limits, USUAL)]
    if length < min(limits.block_size, limits.max_sequence_tokens):
        steps.append(pb.Step(decode=pb.Decode(slot=[0], new_blocks=[0])))
    return steps


def largest_steps(limits: Limits) -> list[pb.Step]:
    """As many tokens as a step may have, in as many sequences as there may be, and a token drawn for each."""
    count = min(limits.max_sequences, limits.max_step_tokens)
    length = min(limits.max_step_tokens // count, limits.max_sequence_tokens)
    return [_prompts(count, length, limits, LARGEST)]


def _prompts(count: int, length: int, limits: Limits, sampling: pb.Sampling) -> pb.Step:
    """`count` new sequences of `length` tokens each, with blocks of their own."""
    blocks = -(-length // limits.block_size)
    slots = list(range(count))
    prefill = pb.Prefill(
        slot=slots,
        start=[0] * count,
        length=[length] * count,
        tokens=[0] * (count * length),
        new_blocks=[blocks] * count,
        blocks=range(count * blocks),
        sample=[True] * count,
        next_token=[0] * count,
    )
    admissions = [pb.Admission(slot=slot, adapter_slot=-1, sampling=sampling) for slot in slots]
    return pb.Step(admissions=admissions, prefill=prefill)
