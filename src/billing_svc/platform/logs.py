"""How every process of the service writes its log: a JSON object on each line, on stderr.

stdout is for a command's result, so that the result can be piped. Warnings and errors are written at once. The lines
of calls are gathered and written together: a crash can lose the lines of the last moment, an orderly end loses none.
Bodies and keys never reach the log: the libraries' messages that would contain them are turned off below.
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

# Only an error's first line is logged: it says what happened. Postgres' second line (DETAIL) quotes the row.
_ERROR_CHARACTERS_MAX = 500
# Of each exception's frames, the outermost and the innermost half of this number are logged.
_FRAMES_MAX = 30
# A write for each line would cost as much as making the line. A person who reads the log does not notice the wait.
_GATHER_SECONDS = 0.05
# About 100 KB; more lines than this are not gathered even if the event loop is blocked.
_GATHERED_LINES_MAX = 512
# Below the level of warnings these libraries log requests, bodies, headers, rows or parameters; Alembic its plugins.
_DISCREET = ("alembic", "httpcore", "httpx", "sqlalchemy", "stripe")

_traceback = ExceptionDictTransformer(show_locals=False, max_frames=_FRAMES_MAX, use_rich=False)


def configure(level: str, *, dev: bool = False) -> None:
    """Set up the log. Called once in a process, before gRPC and Stripe's SDK are imported.

    `level` is debug, info, warning or error. In `dev`, if stderr is a terminal, the lines are text and not JSON.
    """
    # With STRIPE_LOG set, the SDK prints requests to stderr and uses no logger.
    os.environ.pop("STRIPE_LOG", None)
    # gRPC's core writes lines that are not JSON; errors that matter arrive as exceptions.
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
        # Levels are compared here and not in a processor, so that a line below the level costs nothing.
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
    """Drop gRPC's message about a header that is not UTF-8: it quotes the value, which may be a token."""
    return not str(record.msg).startswith("Invalid encoding")


class _Lines:
    """Gathers lines and writes them together; outside of an event loop each line is written at once."""

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
    """Writes lines; `name` is the argument of `structlog.get_logger`."""

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
    # Every call writes a log line; the standard library's JSON encoder would take a third of the line's cost.
    return orjson.dumps(event, default=repr, option=orjson.OPT_UTC_Z).decode()


def _to_line(logger: Any, method: str, event: structlog.typing.EventDict) -> str:  # noqa: ANN401 - a `_Writer`
    """Do the work of the shared processors and of `_for_machines` in a single step, at half the cost of a line."""
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
    # The default formatter of exceptions would show local variables.
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
