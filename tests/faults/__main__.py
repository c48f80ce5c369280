"""`make faults`: every fault test in its long version, with a summary."""

import os
import sys
import time
from typing import Annotated

import pytest
import typer

from tests.faults import runs, summary

# Fault tests in the folders of what they test; they take as long in `make test`.
ELSEWHERE = (
    "tests/billing_svc/platform/database/test_transaction_faults.py",
    "tests/billing_svc/programs/test_outages.py",
    "tests/billing_svc/programs/test_replicas.py",
    "tests/billing_svc/metering/usage/test_atomicity.py",
    "tests/billing_svc/metering/usage/test_repeats.py",
    "tests/billing_svc/usage_export/test_any_fault.py",
    "tests/billing_svc/usage_export/test_faults.py",
    "tests/billing_svc/inbox",
    "tests/billing_svc/subscriptions/test_checkout_faults.py",
)


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="What the longest of the tests takes.")] = 10.0,
    seed: Annotated[int | None, typer.Option(help="To repeat a run; left out: another one each time.")] = None,
    only: Annotated[str, typer.Option("-k", help="Which tests, as pytest's -k.")] = "",
    elsewhere: Annotated[bool, typer.Option(help="Also those that stand beside what they test.")] = True,  # noqa: FBT002 - typer's way
) -> None:
    """Run every fault test in its long version."""
    seed = int(time.time()) % 1_000_000 if seed is None else seed
    os.environ[runs.SEED], os.environ[runs.MINUTES] = str(seed), str(minutes)
    shown = summary.Summary()
    chosen = ["-k", only] if only else []
    places = ["tests/faults", *(ELSEWHERE if elsewhere else ())]
    code = pytest.main([*places, *chosen, "-p", "no:cacheprovider"], plugins=[Registered(shown)])
    shown.show(seed)
    sys.exit(code)


class Registered:
    """Registers the summary plugin under the name by which tests find it."""

    def __init__(self, shown: summary.Summary) -> None:
        self._shown = shown

    def pytest_configure(self, config: pytest.Config) -> None:
        config.pluginmanager.register(self._shown, summary.NAME)


if __name__ == "__main__":
    typer.run(main)
