"""Reading a function's annotations as the contract of a method.

A parameter is sent by the caller, unless it is annotated as `Peer` or `Call`: then it is filled in where the method
runs. What cannot be served is refused here, when the function is declared, with the name of the parameter at fault.
"""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import msgspec

from samehost.codec import CODECS, CannotEncode, types_in
from samehost.errors import SignatureError
from samehost.peer import Peer
from samehost.service.call import Call

_INJECTED: tuple[type, ...] = (Peer, Call)
_STREAMS = (Iterator, AsyncIterator, Generator, AsyncGenerator)
_VARIADIC = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}

MISSING = inspect.Parameter.empty

# From Python 3.14 on, annotations are evaluated when they are asked for; a name that is not there is to be found later,
# together with the parameter that it belongs to.
_READING: dict[str, Any] = (
    {"annotation_format": import_module("annotationlib").Format.FORWARDREF} if sys.version_info >= (3, 14) else {}
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument that callers send.

    Attributes:
        kind: its type.
        default: what stands for it when it is not sent; MISSING if it has to be.
        is_keyword_only: whether the function takes it by its name alone.
    """

    name: str
    kind: Any
    default: Any
    is_keyword_only: bool


@dataclass(frozen=True, slots=True)
class Signature:
    """The contract of a method.

    Attributes:
        parameters: what callers send, in the order of the declaration.
        layout: all parameters in the order of the declaration: the name; Peer or Call if it is filled in with that,
            None if it is sent; and whether the function takes it by its name alone.
        result: the type of the result; Any if it was not declared.
        text: as Python writes it, without what is filled in and without limits.
    """

    parameters: tuple[Parameter, ...]
    layout: tuple[tuple[str, type | None, bool], ...]
    result: Any
    text: str


def read(function: Callable[..., Any], *, is_bound: bool = False) -> Signature:
    """The contract of a function, or of something else that can be called: a bound method, a partial, an object.

    Args:
        is_bound: leave out the first parameter, `self`.

    Raises:
        SignatureError: it cannot be served; the message names the parameter and what is wrong with it.
    """
    name = getattr(function, "__qualname__", repr(function))
    if isinstance(function, type):
        raise SignatureError(f"{name} is a class: declare a function that makes one")
    body = body_of(function)
    if inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body):
        raise SignatureError(f"{name} is a generator: a method returns one value")
    try:
        declared = inspect.signature(function, **_READING)
    except (TypeError, ValueError) as error:
        raise SignatureError(f"{name} is not a function that can be read: {error}") from error
    names = _names_for(body)
    parameters: list[Parameter] = []
    layout: list[tuple[str, type | None, bool]] = []
    shown: list[inspect.Parameter] = []
    for parameter in _without_self(name, declared) if is_bound else declared.parameters.values():
        where = f"{name}: parameter {parameter.name!r}"
        _check_form(where, parameter)
        kind = _evaluated(where, parameter.annotation, names)
        is_injected = kind in _INJECTED
        layout.append((parameter.name, kind if is_injected else None, parameter.kind is parameter.KEYWORD_ONLY))
        if not is_injected:
            parameters.append(_parameter(where, parameter, kind))
            shown.append(parameter.replace(annotation=_as_written(kind)))
    where = f"{name}: the result"
    result = _evaluated(where, declared.return_annotation, names)
    text = str(declared.replace(parameters=shown, return_annotation=_as_written(result)))
    if result is MISSING:
        result = Any
    _check_type(where, result)
    return Signature(tuple(parameters), tuple(layout), result, text)


def body_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that runs when this is called: that of a `functools.partial`, or the `__call__` of an object."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else function.__call__  # type: ignore[operator]  # its function


def _names_for(function: Callable[..., Any]) -> dict[str, Any]:
    """The global names where the function was written that its decorators are around."""
    while (inner := body_of(inspect.unwrap(function))) is not function:
        function = inner
    return getattr(function, "__globals__", {})


def _without_self(function: str, declared: inspect.Signature) -> list[inspect.Parameter]:
    parameters = list(declared.parameters.values())
    if not parameters or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise SignatureError(f"{function} has no parameter self")
    return parameters[1:]


def _check_form(where: str, parameter: inspect.Parameter) -> None:
    """Raise SignatureError if a parameter cannot be sent or filled in, whatever its type is."""
    if parameter.kind in _VARIADIC:
        raise SignatureError(
            f"{where} is {_VARIADIC[parameter.kind]}{parameter.name}: declare each argument by its name"
        )
    if parameter.name.startswith("__"):
        raise SignatureError(f"{where} begins with two underscores, as what is Python's own does: call it otherwise")
    if parameter.annotation is MISSING:
        raise SignatureError(f"{where} has no annotation: say its type, as in {parameter.name}: str, or Any")


def _evaluated(where: str, annotation: Any, names: dict[str, Any]) -> Any:
    """The type that an annotation means: itself, unless it is a string or has one in it."""
    holder = SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, names, include_extras=True)["it"]
    except NameError as error:
        raise SignatureError(
            f"{where} cannot be read: {error}: import it, or define it, at the module's top"
        ) from error
    except Exception as error:  # an expression that may do anything
        raise SignatureError(f"{where} cannot be read: {annotation!r}: {error}") from error


def _as_written(kind: Any) -> Any:
    """The type as people write it, without what is only said about it, such as limits."""
    holder = SimpleNamespace(__annotations__={"it": kind})
    bare = typing.get_type_hints(holder)["it"]
    return None if bare is type(None) else bare


def _parameter(where: str, parameter: inspect.Parameter, kind: Any) -> Parameter:
    _check_type(where, kind)
    if parameter.default is not MISSING:
        try:
            for codec in CODECS.values():
                codec.encode(parameter.default)
        except CannotEncode as error:
            raise SignatureError(
                f"{where} has the default {parameter.default!r}, which cannot travel: {error}"
            ) from error
    return Parameter(parameter.name, kind, parameter.default, parameter.kind is inspect.Parameter.KEYWORD_ONLY)


def _check_type(where: str, kind: Any) -> None:
    """Raise SignatureError if values of this type cannot travel."""
    if (typing.get_origin(kind) or kind) in _STREAMS:
        raise SignatureError(f"{where} is a stream ({_name_of(kind)}): a method takes and returns single values")
    try:
        for codec in CODECS.values():
            codec.decode_to(kind)
        parts = types_in(msgspec.inspect.type_info(kind))
    except Exception as error:  # a class that is not finished can raise anything
        raise SignatureError(f"{where} cannot travel as {_name_of(kind)}: {error}") from error
    for part in parts:
        inner = getattr(part, "cls", None)
        if inner in _INJECTED:
            raise SignatureError(
                f"{where} cannot travel as {_name_of(kind)}: {_name_of(inner)} is filled in where it is all that a "
                "parameter is annotated with"
            )
        if isinstance(part, msgspec.inspect.CustomType):
            raise SignatureError(
                f"{where} cannot travel as {_name_of(kind)}: {_name_of(inner)} is none of builtins, dataclasses, "
                "msgspec.Struct, TypedDict, NamedTuple, Enum, Literal, datetime, UUID and Decimal"
            )


def _name_of(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
