"""Runs a small batch of each kind, so that the first request pays for no lazy initialisation."""

from lorikeet_server.engine.runner import Runner
from lorikeet_server.engine.sequences import Limits
from lorikeet_server.pb import shard_pb2 as pb


def exercise(runner: Runner, limits: Limits) -> None:
    """One prefill, one decode; afterwards every slot is empty again."""
    length = min(16, limits.block_size, limits.max_step_tokens, limits.max_sequence_tokens)
    admission = pb.Admission(slot=0, adapter_slot=-1, sampling=pb.Sampling(temperature=1.0, top_p=0.9))
    prefill = pb.Prefill(
        slot=[0],
        start=[0],
        length=[length],
        tokens=[0] * length,
        new_blocks=[1],
        blocks=[0],
        sample=[True],
        next_token=[0],
    )
    steps = [pb.Step(admissions=[admission], prefill=prefill)]
    if length < min(limits.block_size, limits.max_sequence_tokens):
        steps.append(pb.Step(decode=pb.Decode(slot=[0], new_blocks=[0])))
    for step in steps:
        for error in runner.run(step).errors:
            raise RuntimeError(f"the model does not run: {error.message}")
    runner.reset()
