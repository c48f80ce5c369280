"""Immutable values of the hot path."""

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def value(cls: type[T]) -> type[T]:
    """Make a dataclass that is frozen to mypy alone, where a decision or an event makes several.

    A frozen dataclass sets each field by a call: with five fields it takes 1.9 us to make, this 0.45. Made by keywords,
    one of sixteen fields takes 1.2 us, by position 0.3.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
