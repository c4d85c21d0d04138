"""What sampling asks of a backend: ops on whole rows of a vocabulary, `[T, V]`."""

from typing import NamedTuple, Protocol

from torch import Tensor

# Rows at a time where each takes several times the memory of its scores: 64 of a 128k vocabulary have 33 MB.
ROWS_AT_A_TIME = 64


class Penalties(NamedTuple):
    """What the rows `rows` i64 [P] of a step are penalised by."""

    rows: Tensor
    lanes: Tensor  # i64 [P], of the two tables
    factors: Tensor  # f32 [P, 3]: repetition, frequency, presence
    output: Tensor  # i32 [lanes, V], how often each token was produced
    seen: Tensor  # bool [lanes, V], whether the sequence holds it at all


class Filters(NamedTuple):
    """What rows are drawn by, `[T]` each. Off: top_k 0, top_p 1, typical_p 1."""

    temperature: Tensor  # f32, above 0
    top_k: Tensor  # i64
    top_p: Tensor  # f32
    typical_p: Tensor  # f32
    any_typical: bool  # whether a typical_p is on, for who would have to wait to read it


class RowOps(Protocol):
    """Part of `ops.Kernels`. A row's result depends on that row alone."""

    def penalise(self, scores: Tensor, by: Penalties) -> None:
        """Changes rows of `scores` f32 [T, V] in place, as transformers' repetition penalty and OpenAI's two
        define it."""

    def weigh(self, scores: Tensor, temperature: Tensor) -> Tensor:
        """Relative probabilities f32 [T, V], the best of each row 1: exp of `scores` f32 [T, V] less the
        best, over `temperature` f32 [T]."""

    def keep_top_p(self, weights: Tensor, top_p: Tensor) -> Tensor:
        """What `top_p` f32 [T] leaves of what `weigh` gave: 0 where it leaves nothing, and elsewhere the
        weight, times a factor of the row.

        Left are the likeliest tokens, as few as add up to that share of the row, and whatever equals the last
        of them. Sums of float32 are rounded, so that a row that comes to just `top_p` may keep one value more
        or less.
        """

    def keep(self, scores: Tensor, by: Filters) -> Tensor:
        """What is left of the weights of `scores` f32 [T, V]: as `keep_top_p` gives it, after all filters.

        Top-k leaves as many tokens, the lowest of equals; top-p what `keep_top_p` does; typical-p the tokens
        whose surprise is nearest to the entropy (Meister et al., 2022), as few as add up to that share of the
        row, and whatever is as near as the last of them. Each sees the distribution that the one before it
        left, as in transformers' chain of warpers.
        """

    def best_of(self, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` of each row of `scores` f32 [T, V] in a stable sort by falling score: values f32
        and columns i64, [T, count]. For a row with NaN any columns."""

    def invert(self, weights: Tensor, uniform: Tensor) -> Tensor:
        """Index i64 [T] at which the sums of `weights` f32 [T, V], in the order of columns, pass the share
        `uniform` f64 [T] of the whole. Never one whose weight is zero; for a row of NaN any index, whose
        caller reports it."""
