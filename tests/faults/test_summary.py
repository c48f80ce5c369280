"""The output at the end of `make faults`."""

import io

from tests.faults import summary


def test_pytest_can_keep_the_summary_in_a_set() -> None:
    """pytest puts plugins into a set if folders have their own fixtures; an unhashable plugin ended the long run."""
    shown = summary.Summary(stream=io.TextIOWrapper(io.BytesIO()))
    assert len({shown}) == 1
