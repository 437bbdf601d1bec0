"""Logs: one JSON object a line on standard error, each with an `action` to search for."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logging(program: str) -> None:
    """Send our logs and those of the libraries through one pipeline."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.EventRenamer("action"),
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("darkroom").setLevel(logging.INFO)
    structlog.contextvars.bind_contextvars(program=program)


def get_logger(part: str) -> structlog.stdlib.BoundLogger:
    """Get the logger of one part of the machine."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(f"darkroom.{part}")
    return logger
