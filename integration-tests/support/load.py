"""Load from one thread, over a connection for each request: at a rate, or from so many clients at once."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from support.server import Server


@dataclass(frozen=True)
class Visit:
    """One request: what came back, the seconds to the first and last byte of the body, and when it ended."""

    status: int
    head: str
    body: str
    first: float
    last: float
    ended: float


def p99(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[math.ceil(0.99 * len(ordered)) - 1]


async def _visit(server: Server, body: dict[str, Any], path: str) -> Visit:
    text = json.dumps(body).encode()
    request = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
        f"content-length: {len(text)}\r\n\r\n"
    )
    sent = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request.encode() + text)
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    answer = await reader.read(1 << 16)
    first = time.monotonic() - sent
    answer += await reader.read()
    writer.close()
    ended = time.monotonic()
    return Visit(int(head.split()[1]), head.lower(), answer.decode(), first, ended - sent, ended)


def open_loop(
    server: Server, bodies: Iterable[dict[str, Any]], rate: float, seconds: float, path: str = "/generate"
) -> list[Visit]:
    """A request every 1 / `rate` seconds, whatever has become of those before."""

    async def run() -> list[Visit]:
        start, visits, source = time.monotonic(), [], iter(bodies)
        for index in range(int(rate * seconds)):
            await asyncio.sleep(start + index / rate - time.monotonic())
            visits.append(asyncio.create_task(_visit(server, next(source), path)))
        return await asyncio.gather(*visits)

    return asyncio.run(run())


def closed_loop(
    server: Server, bodies: Iterable[dict[str, Any]], clients: int, seconds: float, path: str = "/generate"
) -> list[Visit]:
    """From each client one request after the other, for so long. They begin one by one, and one that is
    refused waits for a moment.
    """

    async def client(index: int, source: Iterator[dict[str, Any]], end: float) -> list[Visit]:
        visits = []
        await asyncio.sleep(index / 20)
        while time.monotonic() < end:
            visits.append(await _visit(server, next(source), path))
            if visits[-1].status != 200:
                await asyncio.sleep(0.05)
        return visits

    async def run() -> list[Visit]:
        source, end = iter(bodies), time.monotonic() + seconds
        visits = await asyncio.gather(*(client(index, source, end) for index in range(clients)))
        return list(itertools.chain.from_iterable(visits))

    return asyncio.run(run())
