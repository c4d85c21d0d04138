"""Where calls come in: a Unix socket for the router beside this shard, and TCP for one on another machine."""

import hmac
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from lorikeet_server.errors import ConfigError, GroupError
from lorikeet_server.pb import shard_pb2_grpc as rpc
from lorikeet_server.service.servicer import ShardServicer

TOKEN = "lorikeet-token"
# The router has the same bound. Log-probabilities of a long prompt with alternatives are the largest
# message: 20 for each of 100k tokens take 17 MB.
MAX_MESSAGE_BYTES = 64 << 20
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]


class Gate(aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses every call that does not show the group's token, and all until it is known.

    It keeps out who comes by mistake: another group's router, or one that knew the shard before a restart.
    Who can listen in on the network, or read the store where the ranks meet, can know the token.
    """

    def __init__(self) -> None:
        self._token = b""

    def open(self, token: str) -> None:
        """From now on, to those who show it."""
        self._token = token.encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        shown = str(dict(handler_call_details.invocation_metadata).get(TOKEN, "")).encode()
        if self._token and hmac.compare_digest(shown, self._token):
            return await continuation(handler_call_details)
        # On the wire every call is a stream each way.
        return grpc.stream_stream_rpc_method_handler(_refuse)


async def _refuse(_requests: AsyncIterator[bytes], context: aio.ServicerContext) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"{TOKEN} is not that of this group")


async def listen(path: Path, servicer: ShardServicer, health: health_aio.HealthServicer) -> aio.Server:
    """Binds the socket, mode 0600. Raises ConfigError if that fails."""
    server = aio.server(options=OPTIONS)
    rpc.add_ShardServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    previous = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
        await server.start()
    except RuntimeError as error:
        raise ConfigError(f"--uds-path {path}: cannot listen there ({error})") from error
    finally:
        os.umask(previous)
    return server


async def listen_apart(address: str, servicer: ShardServicer, gate: Gate) -> tuple[aio.Server, str]:
    """Binds any free port of `address`, and of no other; returns `host:port` too. Raises GroupError if that
    fails."""
    server = aio.server(options=OPTIONS, interceptors=[gate])
    rpc.add_ShardServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    host = f"[{address}]" if ":" in address else address
    try:
        port = server.add_insecure_port(f"{host}:0")
        await server.start()
    except RuntimeError as error:
        raise GroupError(f"cannot listen on {address}, this machine's address ({error})") from error
    return server, f"{host}:{port}"
