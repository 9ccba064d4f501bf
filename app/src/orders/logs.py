"""Log lines as JSON on standard error, each with the identifiers of its request and trace."""

import logging
import logging.config
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import msgspec

from orders.tracecontext import TRACE

# Who saw or did what to somebody else's: told whatever the level is.
AUDIT = logging.getLogger("orders.audit")

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")


class Line(msgspec.Struct, omit_defaults=True):
    """One log line."""

    time: datetime
    level: str
    logger: str
    message: str
    request_id: str = ""
    trace_id: str = ""
    exception: str = ""


class JsonFormatter(logging.Formatter):
    """Turns a record into a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON, an exception with its traceback in one field."""
        trace = TRACE.get()
        line = Line(
            time=datetime.fromtimestamp(record.created, UTC),
            level=record.levelname,
            logger=record.name,
            message=record.getMessage(),
            request_id=REQUEST_ID.get(),
            trace_id=trace.trace_id if trace else "",
            exception=self.formatException(record.exc_info) if record.exc_info else "",
        )
        return msgspec.json.encode(line).decode()


def log_config(level: str) -> dict[str, Any]:
    """Return the configuration for `logging.config.dictConfig`, which is what Granian takes as well."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "orders.logs.JsonFormatter"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "json"}},
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": {
            AUDIT.name: {"level": "INFO"},
            # They tell of every attempt to connect, and of every request of ours; what matters of it is told by us.
            "pika": {"level": "CRITICAL"},
            "psycopg.pool": {"level": "ERROR"},
            "httpx": {"level": "WARNING"},
            "opentelemetry": {"level": "CRITICAL"},
            "urllib3": {"level": "CRITICAL"},
        },
    }


def set_up_logs(level: str) -> None:
    """Send every log line of this process to standard error as JSON."""
    logging.config.dictConfig(log_config(level))
