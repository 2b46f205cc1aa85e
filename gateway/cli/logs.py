"""Log format of a serving process: UTC time, level, logger, message; on stderr."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, TextIO

OURS = ("seqroute", "gateway", "policy", "uvicorn")


class UtcFormatter(logging.Formatter):
    """Formats lines like `2026-11-25T10:02:21.123Z WARNING seqroute.app: ...`."""

    converter = time.gmtime  # type: ignore[assignment]
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, with uvicorn's logger renamed: it logs everything as `uvicorn.error`."""
        return super().formatMessage(record).replace(" uvicorn.error: ", " uvicorn: ", 1)


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the current standard error stream, which tests may replace."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The current `sys.stderr`."""
        return sys.stderr


def logging_config(level: str) -> dict[str, Any]:
    """Argument of `logging.config.dictConfig`: our loggers from `level` on, others from WARNING."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": f"{__name__}.UtcFormatter"}},
        "handlers": {"stderr": {"()": f"{__name__}.StderrHandler", "formatter": "line"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {name: {"level": level.upper(), "handlers": [], "propagate": True} for name in OURS},
    }
