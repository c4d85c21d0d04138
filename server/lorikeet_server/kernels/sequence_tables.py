"""The part of a step's attention that is the same for every layer."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SequenceTables:
    """Where the S sequences of a step are, all in host memory.

    The queries of sequence s are rows query_start[s] to query_start[s + 1] and its last positions: the last
    query sees all context_len[s] keys. So decodes and prefill chunks mix in one step. Sequences without
    queries are allowed.
    """

    block_tables: Tensor  # i32 [S, max_blocks], entries past a context mean nothing
    query_start: Tensor  # i32 [S + 1]
    context_len: Tensor  # i32 [S]
