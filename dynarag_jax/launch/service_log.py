"""The log of a program that serves: a JSON object a line, on standard error."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from dynarag_jax.launch.console import Console
from dynarag_jax.launch.progress import say


class JsonLines(logging.Handler):
    """Writes records as JSON: time, level, event, and the fields that came with it."""

    def emit(self, record: logging.LogRecord) -> None:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["traceback"] = logging.Formatter().formatException(record.exc_info)
        say(json.dumps(fields, ensure_ascii=False, default=str))


def log_to_console(console: Console, logger: logging.Logger) -> None:
    """Let a logger's records stand on the terminal, where this process speaks."""
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [JsonLines()] if console.primary else [logging.NullHandler()]
