"""The sandbox of a running `dev`: moves its clock, and reads its objects."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx

from tests.end_to_end import dev_process

# A step waits for its events; if some are dropped, that takes several attempts.
ANSWER_SECONDS_MAX = 60
COMMAND_SECONDS_MAX = 90


class Sandbox:
    """The sandbox's control routes, pages and API."""

    def __init__(self, dev: dev_process.DevProcess) -> None:
        self.port = dev.ports[2]
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": "Bearer sk_test_sandbox"},
            timeout=ANSWER_SECONDS_MAX,
            trust_env=False,
        )

    def control(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
        answer = self.http.request(method, f"/_sandbox/{path}", **({} if body is None else {"json": body}))  # type: ignore[arg-type]  # one of two names
        assert answer.is_success, answer.text
        return answer.json()

    def pay(self, url: str) -> None:
        """Press the button of a checkout page."""
        answer = self.http.post(f"{url}/pay", headers={"Accept": "application/json"})
        assert answer.is_success, answer.text

    def all(self, path: str, **params: object) -> list[dict[str, Any]]:
        """Return a whole list, oldest first; a request that an injected fault fails is repeated."""
        found: list[dict[str, Any]] = []
        while True:
            after = {"starting_after": found[-1]["id"]} if found else {}
            page = self.http.get(path, params={"limit": 100, **params, **after}).raise_for_status().json()  # type: ignore[dict-item]  # as in a form
            found += page["data"]
            if not page["has_more"]:
                return found[::-1]

    def step(self, seconds: int, delivery_seconds: float = 10.0) -> tuple[int, list[str]]:
        """Move the clocks to the next due action, at most so far; returns how far, and what happened."""
        done = self.control("POST", "clock/step", {"seconds": seconds, "delivery_seconds": delivery_seconds})
        return int(done["moved_seconds"]), [each["what"] for each in done["happened"]]

    def advance(
        self,
        seconds: int,
        each: Callable[[list[str]], object] = lambda _happened: None,
        delivery_seconds: float = 2.0,
    ) -> None:
        """Move the clocks so far, from each due action to the next."""
        while True:
            moved, happened = self.step(seconds, delivery_seconds)
            seconds -= moved
            each(happened)
            if seconds <= 0:
                return

    def advance_by_command(self, duration: str, *more: str) -> str:
        """Move the clocks by the command `billing-svc sandbox advance`."""
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "billing_svc",
                "sandbox",
                "advance",
                duration,
                "--sandbox-port",
                str(self.port),
                *more,
            ],
            cwd=dev_process.ROOT,
            env=dev_process.environment(),
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout
