"""Immutable values of the hot path."""

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def value(cls: type[T]) -> type[T]:
    """Make a dataclass that only mypy treats as frozen. For classes of which each decision or event makes several.

    A frozen dataclass sets each field by a function call: an instance with five fields takes 1.9 us to make, without
    freezing 0.45 us. Sixteen fields take 1.2 us as keyword arguments, 0.3 us as positional arguments.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
