"""`RowOps` by the C++ library, a row on each thread."""

import ctypes

import torch
from torch import Tensor

from lorikeet_server.kernels.cpu import abi
from lorikeet_server.kernels.cpu.native import check
from lorikeet_server.kernels.row_ops import Filters, Penalties


class CpuRowOps:
    """Raise TypeError or ValueError before anything is computed."""

    library: ctypes.CDLL
    handle: int  # of an instruction set

    def penalise(self, scores: Tensor, by: Penalties) -> None:
        check(scores, "scores", (None, None))
        columns, count, lanes = scores.shape[1], len(by.rows), len(by.output)
        check(by.rows, "rows", (count,), torch.int64)
        check(by.lanes, "lanes", (count,), torch.int64)
        check(by.factors, "factors", (count, 3))
        check(by.output, "output", (lanes, columns), torch.int32)
        check(by.seen, "seen", (lanes, columns), torch.bool)
        native = abi.Penalties(count, columns, *(tensor.data_ptr() for tensor in by))
        self.library.lk_penalise(scores.data_ptr(), native)

    def weigh(self, scores: Tensor, temperature: Tensor) -> Tensor:
        check(scores, "scores", (None, None))
        check(temperature, "temperature", (scores.shape[0],))
        weights = torch.empty_like(scores)
        rows = scores.data_ptr(), *scores.shape
        self.library.lk_weigh(self.handle, *rows, temperature.data_ptr(), weights.data_ptr())
        return weights

    def keep_top_p(self, weights: Tensor, top_p: Tensor) -> Tensor:
        check(weights, "weights", (None, None))
        check(top_p, "top_p", (weights.shape[0],))
        kept, rows = torch.empty_like(weights), (weights.data_ptr(), *weights.shape)
        self.library.lk_keep_top_p(*rows, top_p.data_ptr(), kept.data_ptr())
        return kept

    def keep(self, scores: Tensor, by: Filters) -> Tensor:
        rows = (scores.shape[0],)
        check(by.top_k, "top_k", rows, torch.int64)
        check(by.top_p, "top_p", rows)
        check(by.typical_p, "typical_p", rows)
        kept = self.weigh(scores, by.temperature)
        native = abi.Filters(*(tensor.data_ptr() for tensor in by[:4]))
        self.library.lk_keep(scores.data_ptr(), *scores.shape, native, kept.data_ptr())
        return kept

    def best_of(self, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        check(scores, "scores", (None, None))
        rows, columns = scores.shape
        if not 0 < count <= columns:
            raise ValueError(f"count must be in 1..{columns}, not {count}")
        values, index = torch.empty(rows, count), torch.empty(rows, count, dtype=torch.int64)
        sizes = rows, columns, count
        self.library.lk_best_of(scores.data_ptr(), *sizes, values.data_ptr(), index.data_ptr())
        return values, index

    def invert(self, weights: Tensor, uniform: Tensor) -> Tensor:
        check(weights, "weights", (None, None))
        check(uniform, "uniform", (weights.shape[0],), torch.float64)
        index, rows = torch.empty(len(weights), dtype=torch.int64), (weights.data_ptr(), *weights.shape)
        self.library.lk_invert(*rows, uniform.data_ptr(), index.data_ptr())
        return index
