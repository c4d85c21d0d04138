"""LoRA on a CUDA device: the adapter tables of a model in one buffer, the rows of a step as tiles, and the
segmented product over both. Beside it one kernel for rotation and cache write.

`build` compiles the kernels, `library` opens them, `abi` is their C interface. Nothing here knows models,
layers or steps, and a call waits for nothing and allocates nothing.
"""

from lorikeet_server.kernels.cuda.sgmv import Sgmv
from lorikeet_server.kernels.cuda.tables import LAYOUT, DeviceLoraTables
from lorikeet_server.kernels.cuda.tiles import LoraTiles

__all__ = ["LAYOUT", "DeviceLoraTables", "LoraTiles", "Sgmv"]
