"""One table from errors to gRPC status codes."""

import grpc

from lorikeet_server.errors import LorikeetError
from lorikeet_server.weights import WeightsError


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """Code and message for a caller. An unexpected error is INTERNAL, and says its type but not its text,
    which may hold paths."""
    if isinstance(error, LorikeetError):
        return grpc.StatusCode[error.code], str(error)
    if isinstance(error, WeightsError):
        return grpc.StatusCode.FAILED_PRECONDITION, str(error)
    return grpc.StatusCode.INTERNAL, f"unexpected {type(error).__name__}; see the shard's log"
