"""Moves the clock of a sandbox in another process, and shows what happens meanwhile."""

import datetime as dt
import re
from collections.abc import Callable
from time import sleep
from typing import Any

import httpx

DURATION = re.compile(r"(\d{1,6})(s|m|h|d|w)")
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}

ANSWER_SECONDS = 150.0
"""The timeout of a step: its changes, and the longest wait for the delivery of its events."""


class Failed(Exception):
    """The clock could not be moved; the message says why."""


def read_duration(text: str) -> int:
    """Return the seconds of `90m`, `12h`, `35d` or `1d12h`. Raises ValueError."""
    parts = DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration, such as 90m, 12h, 35d or 1d12h")
    return sum(int(number) * UNIT_SECONDS[unit] for number, unit in parts)


def advance(url: str, seconds: int, pause_seconds: float, show: Callable[[str], None]) -> None:
    """Move from one due change to the next, with `pause_seconds` after each for workers to act. Raises Failed."""
    left = seconds
    # trust_env=False: calls on this machine must not go through a proxy that the environment names.
    with httpx.Client(base_url=url, timeout=ANSWER_SECONDS, trust_env=False) as http:
        show(f"it is {_shown(_call(http, 'GET', '/_sandbox/clock')['now'])}")
        while True:
            step = _call(http, "POST", "/_sandbox/clock/step", {"seconds": left})
            left -= step["moved_seconds"]
            for each in step["happened"]:
                show(f"  {_shown(each['at'])}  {each['subject']} {each['what']}")
            if step["undelivered"]:
                show(f"  {step['undelivered']} events are not delivered yet")
            if step["happened"]:
                sleep(pause_seconds)
            if left <= 0:
                show(f"it is {_shown(step['now'])}")
                return


def _call(http: httpx.Client, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
    try:
        answer = http.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise Failed(f"no sandbox answers at {http.base_url}: {type(error).__name__}") from error
    if not answer.is_success:
        raise Failed(f"{http.base_url} answered {answer.status_code}: {answer.text[:200]}")
    return answer.json()


def _shown(at: int) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
