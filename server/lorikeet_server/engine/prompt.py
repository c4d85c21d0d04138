"""Log-probabilities of a prompt's own tokens, for those who ask."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lorikeet_server.device.base import Device, Parcel
from lorikeet_server.engine import result as results
from lorikeet_server.engine.inputs import PromptChunk
from lorikeet_server.engine.rows import RowAdapters
from lorikeet_server.kernels import ROWS_AT_A_TIME, Kernels, LoraBatch
from lorikeet_server.models.causal_lm import CausalLM
from lorikeet_server.pb import shard_pb2 as pb


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """Rows of a chunk that are scored at a time."""

    rows: slice  # of the step
    targets: torch.Tensor  # i64, on the device
    batch: LoraBatch | None


class PromptScores:
    """Scores chunks of prompts."""

    def __init__(
        self, model: CausalLM, kernels: Kernels, device: Device, parcel: Parcel, batch: RowAdapters
    ) -> None:
        self._model, self._kernels, self._device = model, kernels, device
        self._parcel, self._batch = parcel, batch

    def prepare(self, chunk: PromptChunk, adapters: npt.NDArray[np.int32]) -> tuple[PromptPiece, ...]:
        """Puts what scoring needs into the parcel. `adapters` `[rows]` are the whole step's."""
        pieces = []
        for start in range(0, chunk.targets.size, ROWS_AT_A_TIME):
            targets = chunk.targets[start : start + ROWS_AT_A_TIME]
            rows = slice(chunk.first + start, chunk.first + start + targets.size)
            pieces.append(PromptPiece(rows, self._parcel.add(targets), self._batch(adapters[rows])))
        return tuple(pieces)

    def __call__(
        self, chunk: PromptChunk, pieces: tuple[PromptPiece, ...], hidden: torch.Tensor
    ) -> Callable[[pb.StepResult], None]:
        """`hidden` `[rows, hidden]` is the whole step's. Returns what writes the scores."""
        if not pieces:
            return lambda _: None
        logprobs, top_tokens, top_logprobs = [], [], []
        for piece in pieces:
            logits = self._model.logits(hidden[piece.rows], piece.batch)
            norm = logits.logsumexp(-1, keepdim=True)
            logprobs.append((logits.gather(-1, piece.targets.unsqueeze(-1)) - norm).squeeze(-1))
            if chunk.top:
                best, tokens = self._kernels.best_of(logits, chunk.top)
                top_tokens.append(tokens)
                top_logprobs.append(best - norm)
        download = self._device.download
        scores = download(torch.cat(logprobs))
        top = (
            (download(torch.cat(top_tokens)), download(torch.cat(top_logprobs))) if chunk.top else (None,) * 2
        )
        return lambda result: results.write_prompt(result, chunk, scores, *top)
