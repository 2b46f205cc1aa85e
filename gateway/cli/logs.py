"""Log lines of a serving process: time in UTC, level, logger, message; on stderr."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, TextIO

OURS = ("seqroute", "gateway", "policy", "uvicorn")


class UtcFormatter(logging.Formatter):
    """`2026-11-25T10:02:21.123Z WARNING seqroute.app: ...`."""

    converter = time.gmtime  # type: ignore[assignment]
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        # uvicorn writes all it says, errors or not, to this logger.
        return super().formatMessage(record).replace(" uvicorn.error: ", " uvicorn: ", 1)


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever standard error is by then."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def logging_config(level: str) -> dict[str, Any]:
    """For `logging.config.dictConfig`: our lines from `level` on, warnings of everybody else."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": f"{__name__}.UtcFormatter"}},
        "handlers": {"stderr": {"()": f"{__name__}.StderrHandler", "formatter": "line"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {name: {"level": level.upper(), "handlers": [], "propagate": True} for name in OURS},
    }
