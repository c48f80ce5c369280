import pytest

from tests import clocks
from tests.acceptance import accounts


@pytest.fixture
def service_clock() -> clocks.StillClock:
    return clocks.StillClock(accounts.START)
