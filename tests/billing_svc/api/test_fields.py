"""What is looked at in each request keeps nothing of it."""

import pytest

from billing_svc.api import fields
from billing_svc.platform import errors


def test_what_is_too_long_for_a_name_is_not_kept() -> None:
    """A name that was looked at once is known the next time; of megabytes a thousand would fill the memory."""
    kept = fields._is_name.cache_info().currsize  # noqa: SLF001 - it is what would grow
    for length in (65, 4_000_000):
        check = fields.Fields()
        check.name("meter", "a" * length)
        with pytest.raises(errors.InvalidRequest) as caught:
            check.done()
        assert caught.value.violations[0].description.startswith("must be 1 to 64 characters")
    assert fields._is_name.cache_info().currsize == kept  # noqa: SLF001 - as above
