"""What reaches the log, as a process writes it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SOURCES = str(Path(__file__).resolve().parents[3] / "src")


def logged(script: str, level: str = "debug", code: int = 0) -> list[dict[str, Any]]:
    """Run a script after the log was set up, and return its entries; every line must be one."""
    ended = subprocess.run(
        [sys.executable, "-c", f"from billing_svc.platform import logs\nlogs.configure({level!r})\n{script}"],
        env=os.environ | {"PYTHONPATH": SOURCES, "STRIPE_LOG": "debug"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (code, ""), ended.stderr
    return [json.loads(line) for line in ended.stderr.splitlines()]


def test_an_entry_has_its_time_level_logger_and_values() -> None:
    (entry,) = logged("import structlog\nstructlog.get_logger('here').info('done', count=3)")

    assert entry.pop("timestamp").endswith("Z")
    assert entry == {"event": "done", "level": "info", "logger": "here", "count": 3}


def test_what_is_below_the_level_is_not_written() -> None:
    script = "import structlog\nlog = structlog.get_logger('x')\nlog.debug('a'); log.info('b'); log.warning('c')"

    assert [entry["event"] for entry in logged(script, level="warning")] == ["c"]


def test_the_standard_library_s_loggers_take_the_same_way() -> None:
    (entry,) = logged("import logging\nlogging.getLogger('other').warning('said %s', 'so')")

    assert (entry["event"], entry["logger"], entry["level"]) == ("said so", "other", "warning")


def test_an_exception_has_its_frames_and_neither_local_variables_nor_quoted_rows() -> None:
    script = """
import structlog
def work():
    password = 'hunter2'
    raise ValueError('duplicate key\\nDETAIL: Key (email)=(erika@example.com) exists')
try:
    work()
except ValueError:
    structlog.get_logger('x').exception('failed')
"""
    (entry,) = logged(script)

    (raised,) = entry["exception"]
    assert (raised["exc_type"], raised["exc_value"]) == ("ValueError", "duplicate key")
    assert [frame["name"] for frame in raised["frames"]] == ["<module>", "work"]
    assert "hunter2" not in json.dumps(entry)
    assert "erika" not in json.dumps(entry)


def test_the_members_of_an_exception_group_are_held_to_the_same() -> None:
    script = """
import structlog
try:
    raise ExceptionGroup('both', [ValueError('one\\nDETAIL: erika'), KeyError('two')])
except ExceptionGroup:
    structlog.get_logger('x').exception('failed')
"""
    (entry,) = logged(script)

    assert "one" in json.dumps(entry)
    assert "erika" not in json.dumps(entry)


def test_a_defect_that_ends_the_process_is_an_entry_too() -> None:
    entries = logged("raise ValueError('oh')", code=1)

    assert [(entry["event"], entry["level"]) for entry in entries] == [("died", "critical")]


def test_a_warning_is_an_entry_too() -> None:
    (entry,) = logged("import warnings\nwarnings.warn('old', stacklevel=1)")

    assert entry["logger"] == "py.warnings"


def test_http_clients_and_the_stripe_sdk_say_nothing_of_requests_even_at_debug() -> None:
    script = """
import asyncio, stripe
stripe.enable_telemetry = False
client = stripe.StripeClient('sk_test_hunter2', base_addresses={'api': 'http://127.0.0.1:9'},
                             http_client=stripe.HTTPXClient(timeout=2), max_network_retries=0)
async def call():
    try:
        await client.v1.customers.create_async({'email': 'erika@example.com'})
    except stripe.APIConnectionError:
        pass
asyncio.run(call())
"""
    text = json.dumps(logged(script))

    assert "erika" not in text
    assert "hunter2" not in text


def test_lines_of_an_event_loop_are_gathered_and_an_ordered_end_loses_none() -> None:
    script = """
import asyncio, structlog
log = structlog.get_logger('x')
async def work():
    for n in range(1_000):
        log.info('call', n=n)
asyncio.run(work())
log.info('after')
"""
    entries = logged(script, level="info")

    assert [entry.get("n", entry["event"]) for entry in entries] == [*range(1_000), "after"]


def test_gathered_lines_are_written_within_a_moment_and_a_warning_takes_them_along_at_once() -> None:
    script = """
import asyncio, os, structlog
log = structlog.get_logger('x')
async def work():
    log.info('a')
    await asyncio.sleep(0.2)
    log.info('b')
    log.warning('c')
    log.info('lost with the process')
    os._exit(0)
asyncio.run(work())
"""
    assert [entry["event"] for entry in logged(script, level="info")] == ["a", "b", "c"]


def test_a_header_that_is_not_utf_8_is_not_quoted() -> None:
    script = """
import logging
logging.getLogger('grpc._cython.cygrpc').error('Invalid encoding on %s', b'Bearer hunter2')
logging.getLogger('grpc._cython.cygrpc').error('something else')
"""
    assert [entry["event"] for entry in logged(script)] == ["something else"]
