"""What `make faults` shows at its end."""

import io

from tests.faults import summary


def test_pytest_can_keep_the_summary_in_a_set() -> None:
    """It does, where a run goes through folders with fixtures of their own; the long run ended before it began."""
    shown = summary.Summary(stream=io.TextIOWrapper(io.BytesIO()))
    assert len({shown}) == 1
