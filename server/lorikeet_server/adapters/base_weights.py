"""The weights of the served model that an adapter's file may repeat.

PEFT saves the base's weights of lm_head and embed_tokens beside an adapter of one of them
(`save_embedding_layers`), and gives the model what the file says when it loads the adapter. Where that is
what the model has, it changes nothing; where it is not, it changes every number.
"""

import hashlib
import re
import threading
from collections.abc import Mapping

import torch

from lorikeet_server.adapters.header import TensorInfo
from lorikeet_server.adapters.values import KINDS, convert
from lorikeet_server.errors import InvalidAdapterError, SourceUnavailableError
from lorikeet_server.weights import Slice, WeightsError, WeightSource

_KEY = re.compile(r"base_model\.model\.(?P<module>.+?)(?:\.base_layer)?\.weight")
_READ = 1 << 21  # elements at once: a vocabulary times a width is a gigabyte and more


class BaseWeight:
    """One weight, as the model's files hold it. Thread-safe."""

    def __init__(self, source: WeightSource, name: str, base_digest: str) -> None:
        """`base_digest`: of the source when the model was loaded."""
        self._source, self._name, self._base_digest = source, name, base_digest
        self._lock = threading.Lock()
        self._digests: dict[str, str] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        return self._source.shape(self._name)

    def check(self, name: str, dtype: str, digest: str) -> None:
        """Raises `InvalidAdapterError` unless the bytes of tensor `name`, whose sha256 is `digest`, are these
        numbers in `dtype`; `SourceUnavailableError` where that cannot be told."""
        if digest != self._digest(dtype):
            raise InvalidAdapterError(
                f"tensor {name} differs from this model's {self._name}: the adapter was trained with other "
                "weights, or on the model in another precision; where LoRA is all that was trained, save it "
                "with save_embedding_layers=False"
            )

    def _digest(self, dtype: str) -> str:
        """Of its numbers in a dtype of `KINDS`: read once, on one thread, and remembered."""
        with self._lock:
            if dtype not in self._digests:
                try:
                    self._digests[dtype] = self._read(KINDS[dtype].dtype)
                except (WeightsError, OSError):
                    raise SourceUnavailableError(
                        f"the model's {self._name}, which the adapter repeats, cannot be read any more"
                    ) from None
            return self._digests[dtype]

    def _read(self, dtype: torch.dtype) -> str:
        if self._source.digest != self._base_digest:
            raise SourceUnavailableError(
                f"the model's files, with whose {self._name} the adapter is compared, have changed since the "
                "server started; restart it"
            )
        running = hashlib.sha256()
        rows, columns = self.shape
        step = max(1, _READ // columns)
        for first in range(0, rows, step):
            part = Slice(0, first, min(first + step, rows))
            given = self._source.load(self._name, part).flatten()
            running.update(convert(given, dtype).view(torch.uint8).numpy().data)
        return running.hexdigest()


def base_weights(source: WeightSource, names: Mapping[str, str]) -> dict[str, BaseWeight]:
    """By module, as `names` of tensors in `source`, which are the model that was loaded."""
    digest = source.digest
    weights = {name: BaseWeight(source, name, digest) for name in names.values()}
    return {module: weights[name] for module, name in names.items()}


def repeated(
    tensors: Mapping[str, TensorInfo], base_weights: Mapping[str, BaseWeight]
) -> dict[str, BaseWeight]:
    """What tensors of a file repeat, by their names; `base_weights` is by module, as PEFT names it. Raises
    `InvalidAdapterError` for another shape."""
    found = {}
    for name, info in tensors.items():
        key = _KEY.fullmatch(name)
        weight = base_weights.get(key["module"]) if key is not None else None
        if key is None or weight is None:
            continue
        if info.shape != weight.shape:
            raise InvalidAdapterError(
                f"tensor {name} has the shape {list(info.shape)} and this model's {key['module']} "
                f"{list(weight.shape)}; a model whose vocabulary was resized is another base model"
            )
        found[name] = weight
    return found
