"""Log lines on stderr, as text or JSON: UTC time, level, logger, message and request ids."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from types import TracebackType
from typing import Any, TextIO

import orjson

from gateway.request_ids import REQUEST

OURS = ("seqroute", "uvicorn")
_VALUES = re.compile(
    r"\n(?:DETAIL|CONTEXT):.*?(?=\n\[SQL: |\n\n(?:The above|During handling of the above)|\Z)", re.DOTALL
)
"""The lines of a database's error that quote rows, and so prompts."""


class UtcFormatter(logging.Formatter):
    """Formats lines: `2026-11-25T10:02:21.123Z WARNING seqroute.app: ... [request_id=...]`."""

    converter = time.gmtime  # type: ignore[assignment]
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line before a traceback."""
        line = f"{record.asctime} {record.levelname} {_logger(record)}: {record.message.rstrip()}"
        ids = _ids()
        return f"{line} [{' '.join(f'{name}={value}' for name, value in ids.items())}]" if ids else line

    def formatException(self, ei: Any) -> str:
        """A traceback without the values that a database's error quotes."""
        return _VALUES.sub("", super().formatException(ei))


class JsonFormatter(UtcFormatter):
    """Formats each line as one JSON object; an exception's traceback is its field `stack`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's object."""
        line: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": _logger(record),
            "message": record.getMessage().strip(),
            "process": record.process,
            **_ids(),
        }
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        elif record.stack_info:
            line["stack"] = record.stack_info
        try:
            return orjson.dumps(line).decode()
        except orjson.JSONEncodeError:  # half of a surrogate pair, which only escapes can express
            return json.dumps(line)


def _logger(record: logging.LogRecord) -> str:
    """The logger's name; uvicorn logs everything as `uvicorn.error`."""
    return "uvicorn" if record.name == "uvicorn.error" else record.name


def _ids() -> dict[str, str]:
    ids = REQUEST.get()
    return {} if ids is None else ids.named()


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the current standard error stream, which tests may replace."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The current `sys.stderr`."""
        return sys.stderr


def whole_stderr() -> StderrHandler:
    """The handler, which also gets Python's warnings and uncaught exceptions from now on."""
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda found: _log_uncaught(found.exc_type, found.exc_value, found.exc_traceback)
    return StderrHandler()


def _log_uncaught(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None, /) -> None:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    logging.getLogger("seqroute").critical("uncaught exception", exc_info=(kind, error or kind(), traceback))


def logging_config(level: str, log_format: str) -> dict[str, Any]:
    """Argument of `logging.config.dictConfig`: our loggers from `level` on, others from WARNING."""
    formatter, handler = (
        ("JsonFormatter", "whole_stderr") if log_format == "json" else ("UtcFormatter", "StderrHandler")
    )
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": f"{__name__}.{formatter}"}},
        "handlers": {"stderr": {"()": f"{__name__}.{handler}", "formatter": "line"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {name: {"level": level.upper(), "handlers": [], "propagate": True} for name in OURS},
    }
