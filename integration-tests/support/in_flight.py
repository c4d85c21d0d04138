"""Requests that are under way while something happens to the server, and how each of them ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

import httpx

from support.server import Server, generate_body, until

LONG = 1500
"""Tokens that take a second at least."""


def long_bodies(count: int, max_new_tokens: int = LONG) -> list[dict[str, Any]]:
    """Under the base and the adapters `a0` to `a15` in turn."""
    return [
        generate_body(
            f"request {index}",
            f"a{index % 16}" if index % 3 else None,
            max_new_tokens=max_new_tokens,
            ignore_eos_token=True,
        )
        for index in range(count)
    ]


class InFlight:
    """Requests with these bodies running in threads, every other one streamed; each must come to an end."""

    def __init__(self, server: Server, bodies: Iterable[dict[str, Any]]) -> None:
        self.ends: list[tuple[float, str]] = []
        self.client = httpx.Client(base_url=server.url, timeout=60, trust_env=False)
        self.threads = [
            threading.Thread(target=self._run, args=(body, bool(index % 2)))
            for index, body in enumerate(bodies)
        ]
        for thread in self.threads:
            thread.start()

    def _run(self, body: dict[str, Any], streamed: bool) -> None:
        try:
            end = (
                self._stream(body) if streamed else str(self.client.post("/generate", json=body).status_code)
            )
        except httpx.HTTPError as error:
            end = type(error).__name__
        self.ends.append((time.monotonic(), end))

    def _stream(self, body: dict[str, Any]) -> str:
        """The status, if it is not 200; else what the last event is."""
        last = ""
        with self.client.stream("POST", "/generate_stream", json=body) as response:
            if response.status_code != 200:
                return str(response.status_code)
            for line in response.iter_lines():
                last = line if line.startswith("data:") else last
        return "error event" if '"error"' in last else "200" if '"generated_text":"' in last else "cut"

    def join(self, since: float, seconds: float) -> set[str]:
        """How they ended, all within `seconds` of the time `since`: a status, `error event`, or what tells a
        client nothing.
        """
        for thread in self.threads:
            thread.join(max(0.0, since + seconds + 1 - time.monotonic()))
        hanging = sum(thread.is_alive() for thread in self.threads)
        assert not hanging, f"{hanging} of {len(self.threads)} requests hang; ended: {self.ends}"
        assert len(self.ends) == len(self.threads)
        late = [(end - since, how) for end, how in self.ends if end - since > seconds]
        assert not late, f"ended late: {late}"
        self.client.close()
        return {how for _, how in self.ends}


def running(server: Server, at_least: int) -> None:
    """Waits until so many sequences run."""
    until(
        lambda: server.metrics().get("lorikeet_running_sequences", 0) >= at_least,
        20,
        f"{at_least} running",
        every=0.002,
    )
