"""What measures Lorikeet, started from the repository's root as `python -m benchmarks.NAME`.

It drives the server as the integration tests do, the shard as its tests do, and makes adapters as the
examples do.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

sys.path += [
    str(ROOT / beside)
    for beside in (
        "integration-tests",
        "examples",
        "packaging",
        "server/tests/engine",
        "server/tests/kernels/cuda",
    )
]
