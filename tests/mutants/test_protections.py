from pathlib import Path

import pytest

from tests.mutants.protections import PROTECTIONS, Protection

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("one", PROTECTIONS, ids=lambda one: one.name)
def test_what_is_taken_out_stands_in_its_file_once_and_is_tested(one: Protection) -> None:
    assert (ROOT / one.file).read_text().count(one.old) == 1, "the code has changed; change the list"
    assert one.new != one.old
    for named in one.tests:
        file, *names = named.split("::")
        text = (ROOT / file).read_text()
        assert all(name.partition("[")[0] in text for name in names), named
