"""A virtual environment for each third-party client, since their pins clash; kept between runs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.server import Server

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".venvs"


def environment(client: str) -> Path:
    """The python of the client's environment, made on first use from its lock file."""
    lock = HERE / client / "requirements.txt"
    target = ENVIRONMENTS / f"{client}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    done = target / "done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", target], check=True)
        pip = [target / "bin" / "python", "-m", "pip", "install", "-q", "--require-hashes", "-r", lock]
        subprocess.run(pip, check=True)
        done.touch()
    return target / "bin" / "python"


@pytest.fixture
def run_client(tiny_server: Server) -> Callable[[str], dict[str, Any]]:
    """Runs `CLIENT/session.py URL` in the client's environment; what it prints as JSON."""

    def run(client: str) -> dict[str, Any]:
        script = HERE / client / "session.py"
        clean = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        done = subprocess.run(
            [environment(client), script, tiny_server.url],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=clean,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
