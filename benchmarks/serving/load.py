"""One closed-loop load on one server, by `lorikeet bench`; the same tool and requests for every peer."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, replace

from support.server import BINARY


@dataclass(frozen=True)
class Target:
    """A running server and the dialect to speak with it: `lorikeet`, `openai` (vLLM) or `llama-server`.

    `base` is what it calls its base model. llama-server knows adapters by number, in the order of its flags.
    """

    name: str
    url: str
    api: str = "lorikeet"
    base: str = ""


@dataclass(frozen=True)
class Load:
    """`clients` at a time, each waiting for its answer, until `requests` are done; greedy, EOS ignored."""

    clients: int
    adapters: tuple[str, ...] = ()
    mix: str = "distinct"
    requests: int = 0
    prompt_tokens: int = 42
    tokens: int = 64

    def on(self, target: Target, runs: int = 3) -> dict[str, float]:
        """The run with the median throughput."""
        results = sorted(
            (self.once(target, run) for run in range(runs)), key=lambda result: result["tokens_per_second"]
        )
        return results[len(results) // 2]

    def once(self, target: Target, seed: int) -> dict[str, float]:
        """One run with the prompts and adapters that `seed` gives."""
        requests = self.requests or 2 * self.clients
        command = [
            BINARY,
            "bench",
            "serve",
            "--url",
            target.url,
            "--api",
            target.api,
            "--clients",
            self.clients,
            "--requests",
            requests,
            "--prompt-tokens",
            self.prompt_tokens,
            "--max-tokens",
            self.tokens,
            "--adapter-mix",
            self.mix,
            "--seed",
            seed,
            "--json",
        ]
        if self.adapters:
            command += ["--adapters", ",".join(self.adapters)]
        if target.base:
            command += ["--model", target.base]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{target.name}: {done.stderr}")
        result: dict[str, float] = json.loads(done.stdout)
        if result["errors"]:
            raise SystemExit(
                f"{target.name}: {result['errors']} of {requests} requests failed: {result['error_messages']}"
            )
        return result

    def warm(self, target: Target) -> None:
        """Each adapter once, a few tokens: staged and moved before anything is timed."""
        replace(self, requests=max(len(self.adapters), self.clients), mix="distinct", tokens=4).once(
            target, 0
        )
