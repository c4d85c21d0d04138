"""Model files: finding them, reading their tensors, and the tokenizer that belongs to them."""

from lorikeet_server.weights.error import WeightsError
from lorikeet_server.weights.formats import open_source
from lorikeet_server.weights.progress import Progress, ReportingSource
from lorikeet_server.weights.source import Slice, WeightSource

__all__ = ["Progress", "ReportingSource", "Slice", "WeightSource", "WeightsError", "open_source"]
