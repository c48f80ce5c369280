import pytest

from tests import clocks
from tests.acceptance import accounts


@pytest.fixture
def service_clock() -> clocks.StillClock:
    return clocks.StillClock(accounts.START)


@pytest.fixture
def catalog_name(request: pytest.FixtureRequest) -> str:
    """The product that the file is named after."""
    return str(request.module.__name__).rpartition("test_")[2]
