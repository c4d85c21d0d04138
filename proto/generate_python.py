"""Generates the Python side of the step protocol into `server/lorikeet_server/pb`.

Run it from anywhere with the development environment's Python: `python proto/generate_python.py
[OUTPUT_DIR]`. The output is committed; `server/tests/service/test_generated.py` fails when it is out of date.
"""

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
TARGET = ROOT.parent / "server" / "lorikeet_server" / "pb"
NAMES = ("shard_pb2.py", "shard_pb2.pyi", "shard_pb2_grpc.py")
HEADER = "# ruff: noqa\n# mypy: ignore-errors\n"


def generate(target: Path = TARGET) -> None:
    """Writes the three generated modules into `target`. Raises RuntimeError when protoc refuses the input."""
    with tempfile.TemporaryDirectory() as scratch:
        out = [f"--{kind}_out={scratch}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(["protoc", f"-I{ROOT}", *out, "lorikeet/v1/shard.proto"]) != 0:
            raise RuntimeError("protoc failed on lorikeet/v1/shard.proto")
        target.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            text = (Path(scratch) / "lorikeet" / "v1" / name).read_text()
            # protoc derives the import from the proto path; the modules live in our package instead.
            text = text.replace(
                "from lorikeet.v1 import shard_pb2", "from lorikeet_server.pb import shard_pb2"
            )
            # Stubs stay free of the header: it would switch off checking of the code that uses them.
            (target / name).write_text(text if name.endswith(".pyi") else HEADER + text)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
