"""The committed protocol modules are what protoc gives for the committed .proto."""

import importlib.util
from pathlib import Path

import lorikeet_server.pb

ROOT = Path(__file__).parents[3]


def test_generated_code_is_current(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate_python", ROOT / "proto" / "generate_python.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.generate(tmp_path)
    committed = Path(lorikeet_server.pb.__path__[0])
    for name in module.NAMES:
        assert (committed / name).read_text() == (tmp_path / name).read_text(), (
            f"{name} is out of date: run python proto/generate_python.py and commit"
        )
