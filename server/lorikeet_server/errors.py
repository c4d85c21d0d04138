"""What can go wrong, named for the caller's problem.

Each class carries the gRPC status that a caller sees (`service/status.py` is the one place that maps it).
Messages say what was given, what is allowed and how to mend it; they never carry paths outside what the
caller sent.
"""

from typing import ClassVar


class LorikeetError(Exception):
    """Base of every expected error. `code` is the name of a gRPC status code."""

    code: ClassVar[str] = "INTERNAL"


class ConfigError(LorikeetError):
    """A flag, an environment variable or a combination of them is wrong. The process does not start."""

    code = "INVALID_ARGUMENT"


class ModelError(LorikeetError):
    """The model directory or file cannot be served: unknown architecture, missing or misshapen tensor."""

    code = "FAILED_PRECONDITION"


class InvalidAdapterError(LorikeetError):
    """The adapter is unacceptable; the message names the field or tensor."""

    code = "INVALID_ARGUMENT"


class NotFoundError(LorikeetError):
    """No such adapter, or nothing under this digest."""

    code = "NOT_FOUND"


class TooLargeError(LorikeetError):
    """Larger than the bound that the caller or the operator gave."""

    code = "OUT_OF_RANGE"


class NoRoomError(LorikeetError):
    """There is no room for it now, on disk or in host memory; there may be later."""

    code = "RESOURCE_EXHAUSTED"


class SourceUnavailableError(LorikeetError):
    """Where the adapter is kept cannot be reached now; trying again may help."""

    code = "UNAVAILABLE"


class DataLossError(LorikeetError):
    """Stored bytes no longer have the digest they are stored under."""

    code = "DATA_LOSS"


class NotReadyError(LorikeetError):
    """The call needs something that has not happened yet, e.g. `Warmup`."""

    code = "FAILED_PRECONDITION"


class DeviceError(LorikeetError):
    """The device has failed. Nothing on it can be trusted or used again by this process, which ends."""

    code = "UNAVAILABLE"

    @classmethod
    def of(cls, error: Exception) -> "DeviceError":
        """The first line of what the runtime says; the rest is advice on debugging it."""
        return cls(f"the device has failed: {str(error).splitlines()[0]}; see dmesg and nvidia-smi -q")


class GroupError(LorikeetError):
    """The ranks of a group have not met. They may yet: another machine is late, or its name not known."""

    code = "UNAVAILABLE"


class ProtocolError(LorikeetError):
    """A step refers to something that cannot be: the router and this shard disagree, so the stream ends."""

    code = "INVALID_ARGUMENT"
