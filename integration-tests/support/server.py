"""One `lorikeet serve` under test: started on a free loopback port, ended with everything it started."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

# Beside this Python, or where a machine without Rust was given one.
BINARY = Path(os.environ.get("LORIKEET_BINARY") or Path(sys.executable).with_name("lorikeet"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Any, seconds: float, what: str, every: float = 0.05) -> Any:
    """The first truthy value of `condition()`, polled; fails after `seconds` naming `what`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(every)


@dataclass
class Server:
    """`lorikeet serve` with `args`; a context manager."""

    model: str
    adapter_roots: Sequence[Path] = ()
    args: Sequence[str] = ()
    env: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    ready_within: float = 180.0
    scratch: Path | None = None  # where its directory is made; else among the system's temporary files

    def __post_init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="lorikeet-it-", dir=self.scratch))
        weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)
        self.log_path = self.directory / "log"
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=120, trust_env=False)

    def command(self) -> list[str]:
        roots = [word for root in self.adapter_roots for word in ("--adapter-root", str(root))]
        return [
            str(BINARY),
            "serve",
            "--model-id",
            self.model,
            "--port",
            str(self.port),
            *roots,
            "--store-dir",
            str(self.directory / "store"),
            *self.args,
        ]

    def spawn(self) -> Server:
        """Starts the process without waiting for anything."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.env},
            )
        return self

    def __enter__(self) -> Server:
        self.spawn()
        try:
            self.wait_ready(self.ready_within)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        family = self.family()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.client.close()

    def wait_ready(self, seconds: float = 60) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, (
                f"the server exited with {self.process.returncode}:\n{self.log()[-4000:]}"
            )
            return self.health() == 200

        try:
            until(ready, seconds, "ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()[-4000:]}") from None

    def health(self) -> int:
        """The status of /health; 0 while nothing listens. Over a kept connection: a new client of httpx takes
        40 to 400 ms on two busy cores, which is most of what some rows allow."""
        try:
            return self.client.get("/health", timeout=5).status_code
        except httpx.TransportError:
            return 0

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        """The launcher's live descendants."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def shards(self) -> list[psutil.Process]:
        return [p for p in self.family() if "lorikeet_server" in " ".join(p.cmdline())]

    def router(self) -> psutil.Process:
        return next(p for p in self.family() if "router" in p.cmdline()[1:2])

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics: name with labels -> value."""
        samples = {}
        for line in self.client.get("/metrics").text.splitlines():
            if match := re.match(r"^([A-Za-z_:][^ ]*(?:\{.*\})?) (\S+)$", line):
                samples[match[1]] = float(match[2])
        return samples

    # Requests

    def generate(self, prompt: str, adapter: str | None = None, **parameters: Any) -> dict[str, Any]:
        """POST /generate, which must succeed; greedy, with details."""
        response = self.post_generate(prompt, adapter, **parameters)
        assert response.status_code == 200, response.text
        return response.json()

    def post_generate(self, prompt: str, adapter: str | None = None, **parameters: Any) -> httpx.Response:
        return self.client.post("/generate", json=generate_body(prompt, adapter, **parameters))

    def stream(self, prompt: str, adapter: str | None = None, **parameters: Any) -> Iterator[str]:
        """The `data:` payloads of POST /generate_stream."""
        body = generate_body(prompt, adapter, **parameters)
        with self.client.stream("POST", "/generate_stream", json=body) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                if line.startswith("data:"):
                    yield line[5:].strip()


def generate_body(prompt: str, adapter: str | None = None, **parameters: Any) -> dict[str, Any]:
    """A native request, greedy and with details unless said otherwise."""
    if adapter is not None:
        parameters |= {"adapter_id": adapter, "adapter_source": "local"}
    return {"inputs": prompt, "parameters": {"max_new_tokens": 16, "details": True, **parameters}}


def token_ids(response: dict[str, Any]) -> list[int]:
    return [token["id"] for token in response["details"]["tokens"]]
