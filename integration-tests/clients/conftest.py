"""Third-party clients, each in its own environment, since their pins clash."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lock_environment import environment
from support.server import Server

HERE = Path(__file__).parent


@pytest.fixture
def run_client(tiny_server: Server) -> Callable[[str], dict[str, Any]]:
    """Runs `CLIENT/session.py URL` in the client's environment; what it prints as JSON."""

    def run(client: str) -> dict[str, Any]:
        python = environment(HERE / client / "requirements.txt") / "bin" / "python"
        script = HERE / client / "session.py"
        clean = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        done = subprocess.run(
            [python, script, tiny_server.url],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=clean,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
