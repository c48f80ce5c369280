import urllib.parse

import hypothesis
import pytest
from hypothesis import strategies
from stripe._encode import _api_encode  # the SDK's own encoder, whose output is decoded here

from stripe_sandbox import errors
from stripe_sandbox.api import forms

names = strategies.text(strategies.characters(exclude_characters="[]", codec="utf-8"), min_size=1, max_size=8)
values = strategies.text(strategies.characters(codec="utf-8"), max_size=8)
nested = strategies.recursive(
    values, lambda inner: strategies.dictionaries(names, inner, min_size=1, max_size=3), max_leaves=6
)


@hypothesis.given(strategies.dictionaries(names, nested, max_size=3))
def test_what_the_sdk_encodes_is_decoded(params: dict[str, object]) -> None:
    encoded = urllib.parse.urlencode(list(_api_encode(params)))
    assert forms.decode(encoded.encode()) == params


@hypothesis.given(strategies.binary(max_size=60))
def test_any_bytes_are_decoded_or_refused(encoded: bytes) -> None:
    try:
        decoded = forms.decode(encoded)
    except errors.InvalidParameter:
        return
    assert isinstance(decoded, dict)


def test_lists_keep_their_indexes_and_empty_brackets_count_up() -> None:
    assert forms.decode(b"a[0]=x&a[1]=y&b[]=z&b[]=w") == {"a": {"0": "x", "1": "y"}, "b": {"0": "z", "1": "w"}}


def test_a_form_field_is_not_both_a_value_and_a_hash() -> None:
    with pytest.raises(errors.InvalidParameter):
        forms.decode(b"a=1&a[b]=2")
