"""Model files: finding them, reading their tensors, and the tokenizer that belongs to them."""

from lorikeet_server.weights.error import WeightsError
from lorikeet_server.weights.source import Progress, ReportingSource, Slice, WeightSource, open_source

__all__ = ["Progress", "ReportingSource", "Slice", "WeightSource", "WeightsError", "open_source"]
