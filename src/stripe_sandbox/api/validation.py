"""Checks requests against the parameter types of Stripe's official SDK.

pydantic gets adapted copies of these types. A form has only text, and its lists arrive as dicts with the keys "0",
"1"... The SDK adds `str` to an enum's `Literal`, because Stripe may add values; the copy leaves it out, because it
would accept any value.
"""

import collections.abc
import decimal
import functools
import types
import typing
from typing import Annotated, Any, Literal

import pydantic
import typing_extensions
from stripe import StripeContext
from stripe import _request_options as request_options
from stripe import _stripe_object as stripe_object

from stripe_sandbox import errors
from stripe_sandbox.api import forms

TEXT_LENGTH_MAX = 5_000
"""The most characters that Stripe accepts in a text."""

INTEGER_DIGITS_MAX = 18
"""The most characters of an integer, so that it fits in 64 bits."""


def _integer(value: object) -> int:
    text = str(value)
    if not text.removeprefix("-").isdecimal() or not text.isascii() or len(text) > INTEGER_DIGITS_MAX:
        raise ValueError(f"Invalid integer: {text[:50]}")
    return int(text)


def _boolean(value: object) -> bool:
    if value not in ("true", "false"):
        raise ValueError(f"Invalid boolean: {str(value)[:50]}")
    return value == "true"


def _listed(value: object) -> object:
    """Return a dict with the keys "0", "1"... as a list, anything else unchanged, which the type then refuses."""
    if isinstance(value, dict) and sorted(value) == sorted(map(str, range(len(value)))):
        return [value[str(index)] for index in range(len(value))]
    return value


_LEAVES: dict[Any, Any] = {
    int: Annotated[int, pydantic.BeforeValidator(_integer)],
    bool: Annotated[bool, pydantic.BeforeValidator(_boolean)],
    str: Annotated[str, pydantic.Field(min_length=1, max_length=TEXT_LENGTH_MAX)],
    float: float,
    decimal.Decimal: decimal.Decimal,
}
_POSSIBLY_EMPTY = Annotated[str, pydantic.Field(max_length=TEXT_LENGTH_MAX)]


@functools.cache
def adapter(params_type: type) -> pydantic.TypeAdapter[forms.Params]:
    """Return the validator of a type of `stripe.params`; each is built only once."""
    return pydantic.TypeAdapter(_copied(params_type))


def _copied(hint: Any) -> Any:  # noqa: ANN401 - a type annotation may be any object
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _LEAVES:
        return _LEAVES[hint]
    if typing_extensions.is_typeddict(hint):
        return _copied_dict(hint)
    if origin is Literal:
        return hint
    if origin in (typing.Union, types.UnionType):
        return _copied_union(arguments)
    return _copied_generic(hint, origin, arguments)


def _copied_generic(hint: Any, origin: Any, arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401 - as above
    if origin in (typing_extensions.NotRequired, typing_extensions.Required):
        return origin[_copied(arguments[0])]
    if origin is list:
        return Annotated[list[_copied(arguments[0])], pydantic.BeforeValidator(_listed)]  # type: ignore[misc] # built at run time
    if origin is dict:
        value = _POSSIBLY_EMPTY if arguments[1] is str else _copied(arguments[1])
        return dict[str, value]  # type: ignore[valid-type] # built at run time
    raise TypeError(f"the SDK uses a type that is not known here: {hint}")


def _copied_union(members: tuple[Any, ...]) -> Any:  # noqa: ANN401 - as above
    names_values = any(typing.get_origin(member) is Literal and typing.get_args(member) != ("",) for member in members)
    kept = [
        _copied(member)
        for member in members
        if typing.get_origin(member) is not stripe_object.UntypedStripeObject and not (member is str and names_values)
    ]
    return typing.Union[tuple(kept)]  # noqa: UP007 - built at run time


@functools.cache
def _copied_dict(params_type: Any) -> Any:  # noqa: ANN401 - as above
    hints = typing_extensions.get_type_hints(
        params_type,
        localns={"StripeContext": StripeContext, "Mapping": collections.abc.Mapping},
        include_extras=True,
    )
    options = request_options.RequestOptions.__annotations__
    fields = {name: _copied(hint) for name, hint in hints.items() if name not in options}
    make: Any = typing_extensions.TypedDict  # type checkers know only its static use
    copy = make(params_type.__name__, fields)
    copy.__pydantic_config__ = pydantic.ConfigDict(extra="forbid")
    return copy


def check(params_type: type, params: forms.Params) -> forms.Params:
    """Return the parameters with their types. Raises InvalidParameter with the name of a wrong parameter."""
    try:
        return adapter(params_type).validate_python(params)
    except pydantic.ValidationError as error:
        found = [(_path(params, detail), detail) for detail in error.errors(include_url=False)]
        # Each member of a union reports an error. The deepest error is of the member that the caller most likely meant.
        path, detail = max(found, key=lambda pair: len(pair[0]))
        raise _explained(path, detail) from error


def _path(params: forms.Params, detail: Any) -> tuple[str, ...]:  # noqa: ANN401 - pydantic's own dict
    """Return the place of an error in the parameters; pydantic's location also names the members of unions."""
    at: object = params
    path: list[str] = []
    for step in map(str, detail["loc"]):
        if isinstance(at, dict) and step in at:
            at = at[step]
            path.append(step)
    if detail["type"] == "missing":
        path.append(str(detail["loc"][-1]))
    return tuple(path) or (str(detail["loc"][0]) if detail["loc"] else "body",)


def _explained(path: tuple[str, ...], detail: Any) -> errors.InvalidParameter:  # noqa: ANN401 - as above
    param = forms.encode_path(path)
    match detail["type"]:
        case "extra_forbidden":
            return errors.InvalidParameter(
                f"Received unknown parameter: {param}", param=param, code="parameter_unknown"
            )
        case "missing":
            return errors.InvalidParameter(f"Missing required param: {param}.", param=param, code="parameter_missing")
        case "value_error":
            return errors.InvalidParameter(str(detail["ctx"]["error"]), param=param)
        case "string_too_short":
            return errors.InvalidParameter(
                f"You passed an empty string for '{param}', which cannot be unset.",
                param=param,
                code="parameter_invalid_empty",
            )
        case _:
            return errors.InvalidParameter(f"Invalid {param}: {detail['msg']}", param=param)
