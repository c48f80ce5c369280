"""How every process of the service writes its log: one JSON object a line, on stderr.

On stderr, because stdout belongs to a command's result and must stay fit for a pipe. What is a warning or worse is
written at once; the lines of calls are written together, so that a crash may take those of a moment along, and an
ordered end takes none. Bodies and keys never get here: what the libraries would say about them is turned off below.
"""

import asyncio
import atexit
import logging
import os
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

import orjson
import structlog
from structlog.tracebacks import ExceptionDictTransformer

# An error's first line says what happened. Postgres' next one (DETAIL) quotes the row.
_ERROR_CHARACTERS_MAX = 500
# Of each exception: the outermost and the innermost half of them.
_FRAMES_MAX = 30
# Writing a line by itself costs as much as making it. Nobody who follows a log notices the wait.
_GATHER_SECONDS = 0.05
# About a hundred KB: a pause of the event loop gathers no more.
_GATHERED_LINES_MAX = 512
# Below warnings these speak of requests and their bodies, headers, rows or parameters; Alembic of its plugins.
_DISCREET = ("alembic", "httpcore", "httpx", "sqlalchemy", "stripe")

_traceback = ExceptionDictTransformer(show_locals=False, max_frames=_FRAMES_MAX, use_rich=False)


def configure(level: str, *, dev: bool = False) -> None:
    """Set the log up, once in a process and before gRPC and Stripe's SDK are imported.

    `level` is debug, info, warning or error. In `dev` the lines are for people if stderr is a terminal.
    """
    # The SDK would print requests to stderr past every logger.
    os.environ.pop("STRIPE_LOG", None)
    # gRPC's core writes lines of its own shape; what matters arrives as an exception.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

    minimum = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        _add_time,
    ]
    lines = _Lines(sys.stderr)
    is_for_people = dev and sys.stderr.isatty()
    rendering = _for_people() if is_for_people else _for_machines()
    structlog.configure(
        processors=[*shared, *rendering] if is_for_people else [_to_line],
        # Levels are compared here and not in a processor: what is below costs nothing.
        wrapper_class=structlog.make_filtering_bound_logger(minimum),
        logger_factory=lambda *names: _Writer(names[0] if names else "", lines),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(level=minimum, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name in _DISCREET:
        logging.getLogger(name).setLevel(max(minimum, logging.WARNING))
    logging.getLogger("grpc._cython.cygrpc").addFilter(_quotes_no_header)
    sys.excepthook = _log_defect
    threading.excepthook = _log_thread_defect


def _quotes_no_header(record: logging.LogRecord) -> bool:
    """Leave out what gRPC says of a header that is not UTF-8: it quotes the value, which may be a token."""
    return not str(record.msg).startswith("Invalid encoding")


class _Lines:
    """Lines on their way out; outside of an event loop each is written at once."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._gathered: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        atexit.register(self.flush)

    def add(self, line: str) -> None:
        self._gathered.append(line)
        if self._timer is not None and len(self._gathered) < _GATHERED_LINES_MAX:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if self._timer is None:
            self._timer = loop.call_later(_GATHER_SECONDS, self.flush)
        else:
            self.flush()

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._gathered = self._gathered, []
        if lines:
            self._file.write("\n".join(lines) + "\n")
            self._file.flush()


class _Writer:
    """Writes lines; its name is what `structlog.get_logger` was given."""

    def __init__(self, name: str, lines: _Lines) -> None:
        self.name = name
        self._lines = lines

    def info(self, line: str) -> None:
        self._lines.add(line)

    debug = info

    def warning(self, line: str) -> None:
        self._lines.add(line)
        self._lines.flush()

    error = critical = warning


def _for_machines() -> list[structlog.typing.Processor]:
    return [_render_exception, _to_json]


def _to_json(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    # Every call writes a line, and the standard library's JSON would be a third of its cost.
    return orjson.dumps(event, default=repr, option=orjson.OPT_UTC_Z).decode()


def _to_line(logger: Any, method: str, event: structlog.typing.EventDict) -> str:  # noqa: ANN401 - a `_Writer`
    """Do at once what the shared processors and `_for_machines` do one after the other: half of a line's cost."""
    if "exc_info" in event:
        event = _render_exception(logger, method, event)
    event["level"] = method
    event["logger"] = logger.name
    event["timestamp"] = datetime.now(UTC)
    return _to_json(logger, method, event)


def _add_time(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    event["timestamp"] = datetime.now(UTC).isoformat(timespec="microseconds")[:-6] + "Z"
    return event


def _for_people() -> list[structlog.typing.Processor]:
    # Not the default formatter of exceptions, which shows local variables.
    return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]


def _described(exc_info: structlog.typing.ExcInfo) -> list[dict[str, Any]]:
    """Return the exception and its causes with their frames, without local variables or quoted rows."""
    stacks = _traceback(exc_info)
    _shorten(stacks)
    return stacks


def _shorten(stacks: list[dict[str, Any]]) -> None:
    for stack in stacks:
        stack["exc_value"] = stack["exc_value"].partition("\n")[0][:_ERROR_CHARACTERS_MAX]
        for part in stack.get("exceptions", ()):
            _shorten(part)


_render_exception = structlog.processors.ExceptionRenderer(_described)


def _log_defect(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    structlog.get_logger("process").critical("died", exc_info=(kind, error, traceback))


def _log_thread_defect(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None:
        structlog.get_logger("process").critical("thread_died", exc_info=arguments.exc_value)
