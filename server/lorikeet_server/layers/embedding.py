"""Token embedding and lm_head, both split over the vocabulary, and tied or not."""

import torch
import torch.nn.functional as F  # noqa: N812

from lorikeet_server.kernels import LoraBatch
from lorikeet_server.layers.build import Build
from lorikeet_server.layers.linear import Linear
from lorikeet_server.layers.lora import LoraSite
from lorikeet_server.weights import Slice


class Embedding:
    """Rows of the embedding matrix, times `scale`, as activations. Each rank holds a range of the
    vocabulary."""

    def __init__(self, build: Build, name: str, vocab_size: int, hidden_size: int, scale: float) -> None:
        self._tp, self._dtype, self._scale = build.tp, build.kernels.dtype, scale
        rows = build.tp.share(vocab_size)
        self._start = rows.start
        weight = build.matrix(name, (vocab_size, hidden_size), Slice(0, rows.start, rows.stop))
        self._weight = weight.to(build.kernels.device, getattr(torch, build.mode))

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """`tokens` `[rows]` int64 -> `[rows, hidden]` activations."""
        rows = self._rows(tokens)
        return rows if self._scale == 1 else rows * self._scale

    def _rows(self, tokens: torch.Tensor) -> torch.Tensor:
        if self._tp.size == 1:
            return F.embedding(tokens, self._weight).to(self._dtype)
        local = tokens - self._start
        foreign = (local < 0) | (local >= self._weight.shape[0])
        rows = F.embedding(local.masked_fill(foreign, 0), self._weight).to(self._dtype)
        rows.masked_fill_(foreign.unsqueeze(-1), 0)
        self._tp.all_reduce(rows)
        return rows


class LmHead:
    """Logits over the whole vocabulary, on every rank. A tied head reads the embedding again, which keeps its
    rows rounded. With a soft cap a logit x becomes cap * tanh(x / cap)."""

    def __init__(
        self,
        build: Build,
        weight_name: str,
        vocab_size: int,
        hidden_size: int,
        soft_cap: float | None = None,
        name: str = "lm_head",
    ) -> None:
        self._tp, self._vocab_size, self._soft_cap = build.tp, vocab_size, soft_cap
        rows = build.tp.share(vocab_size)
        weight = build.matrix(weight_name, (vocab_size, hidden_size), Slice(0, rows.start, rows.stop))
        site = LoraSite(hidden_size, (len(rows),))
        site.add_target(name, hidden_size, vocab_size, range(hidden_size), rows)
        self.linear = Linear(build, weight, None, site, reduce=False)

    def __call__(
        self, hidden: torch.Tensor, batch: LoraBatch | None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`hidden` `[rows, hidden]` -> `[rows, vocab]` float32, in `out` if given."""
        logits = self._tp.gather_columns(self.linear(hidden, batch), self._vocab_size)
        logits = logits.float() if out is None else out.copy_(logits)
        cap = self._soft_cap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)
