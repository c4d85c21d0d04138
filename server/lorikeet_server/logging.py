"""Log records on stderr: lines for people, or one JSON object per line for the launcher to merge."""

import json
import logging
import sys
import traceback
from typing import TYPE_CHECKING

from loguru import logger

if TYPE_CHECKING:
    from loguru import Message, Record

_TEXT = "{time:HH:mm:ss.SSS} {level: <7} {extra[rank]} {message}"


def configure(*, as_json: bool, rank: int, verbose: bool = False) -> None:
    """Sends loguru, and the standard library's logging through it, to stderr."""
    logger.remove()
    logger.configure(extra={"rank": f"shard-{rank}"})
    level = "DEBUG" if verbose else "INFO"
    if as_json:
        logger.add(_write_json, level=level)
    else:
        logger.add(sys.stderr, level=level, format=_TEXT, backtrace=False, diagnose=False)
    logging.basicConfig(handlers=[_Intercept()], level=level, force=True)
    # asyncio's and grpc's debug chatter says nothing about this program.
    for name in ("asyncio", "grpc"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _write_json(message: "Message") -> None:
    sys.stderr.write(_as_json(message.record) + "\n")
    sys.stderr.flush()


def _as_json(record: "Record") -> str:
    entry = {
        "timestamp": record["time"].isoformat(),
        "level": record["level"].name,
        "target": record["name"],
        "message": record["message"],
        **record["extra"],
    }
    if record["exception"] is not None:
        error = record["exception"]
        entry["error"] = f"{error.type.__name__ if error.type else 'error'}: {error.value}"
        entry["traceback"] = "".join(traceback.format_tb(error.traceback))
    return json.dumps(entry, default=str)


class _Intercept(logging.Handler):
    """Hands records of the standard library's loggers to loguru."""

    def emit(self, record: logging.LogRecord) -> None:
        level = (
            record.levelname
            if record.levelname in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
            else "INFO"
        )
        logger.opt(exception=record.exc_info, depth=6).log(level, record.getMessage())
