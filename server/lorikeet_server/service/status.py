"""One table from errors to gRPC status codes."""

import grpc

from lorikeet_server.errors import LorikeetError

# A status travels in a header, which gRPC bounds at 8 KiB, percent-encoded: three bytes for one.
_MAX_MESSAGE = 1000


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """Code and message for a caller. An unexpected error is INTERNAL, and says its type but not its text,
    which may hold paths."""
    if isinstance(error, LorikeetError):
        return grpc.StatusCode[error.code], _sendable(str(error))
    return grpc.StatusCode.INTERNAL, f"unexpected {type(error).__name__}; see the shard's log"


def _sendable(message: str) -> str:
    """A message that can be sent whatever it quotes: ASCII, of at most 1000 characters. One that cannot be
    encoded or is too long for a header breaks the call, and its caller waits for the deadline."""
    text = message.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= _MAX_MESSAGE else f"{text[: _MAX_MESSAGE - 3]}..."
