"""Reading a function's annotations as the contract of a method.

A parameter is sent by the caller, unless it is annotated as `Peer` or `Call`: then it is filled in where the method
runs. One that is annotated as an iterator is a stream that comes in, and a result that is one goes out, item by item.
What cannot be served is refused here, when the function is declared, with the name of the parameter at fault.
"""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import msgspec

from samehost.codec import CODECS, CannotEncode
from samehost.errors import SignatureError
from samehost.extensions import travels_beside, types_in
from samehost.peer import Peer
from samehost.service.call import Call

_INJECTED: tuple[type, ...] = (Peer, Call)
_PLAIN_STREAMS = (Iterator, Iterable, Generator)
_ASYNC_STREAMS = (AsyncIterator, AsyncIterable, AsyncGenerator)
_VARIADIC = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}

MISSING = inspect.Parameter.empty


class Items:
    """The place of the stream that comes in, in a signature's layout."""


class NoStream:
    """What stands for the type of a stream's items where there is none."""


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
        parameters: what callers send with the call, in the order of the declaration.
        layout: all parameters in the order of the declaration: the name; Peer or Call if it is filled in with that,
            Items if it is the stream that comes in, None if it is sent with the call; and whether the function takes it
            by its name alone.
        result: the type of the result, or of the value at the end of a stream; Any if it was not declared.
        text: as Python writes it, without what is filled in and without limits.
        items_in: the type of the items that callers stream; NoStream if they do not.
        items_out: the type of the items that the method streams; NoStream if it does not.
        stream_parameter: the name of the parameter that takes those of the callers; empty without one.
        runs_on_loop: it is a coroutine function, or gives an asynchronous iterator.
    """

    parameters: tuple[Parameter, ...]
    layout: tuple[tuple[str, type | None, bool], ...]
    result: Any
    text: str
    items_in: Any = NoStream
    items_out: Any = NoStream
    stream_parameter: str = ""
    runs_on_loop: bool = False


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
    try:
        declared = inspect.signature(function, **_READING)
    except (TypeError, ValueError) as error:
        raise SignatureError(f"{name} is not a function that can be read: {error}") from error
    names = _names_for(body)
    annotation = _evaluated(f"{name}: the result", declared.return_annotation, names)
    result, items_out, runs_on_loop = _read_result(f"{name}: the result", annotation, body)
    parameters: list[Parameter] = []
    layout: list[tuple[str, type | None, bool]] = []
    shown: list[inspect.Parameter] = []
    items_in, stream_parameter = NoStream, ""
    for parameter in _without_self(name, declared) if is_bound else declared.parameters.values():
        where = f"{name}: parameter {parameter.name!r}"
        _check_form(where, parameter)
        kind = _evaluated(where, parameter.annotation, names)
        filled_in = kind if kind in _INJECTED else Items if is_stream(kind) else None
        layout.append((parameter.name, filled_in, parameter.kind is parameter.KEYWORD_ONLY))
        if filled_in is Items:
            if stream_parameter:
                raise SignatureError(f"{where} is a second stream beside {stream_parameter!r}: a call has room for one")
            items_in, stream_parameter = _read_stream_in(where, parameter, kind, runs_on_loop), parameter.name
        elif not filled_in:
            parameters.append(_parameter(where, parameter, kind))
        if filled_in not in _INJECTED:
            shown.append(parameter.replace(annotation=_as_written(kind)))
    text = str(declared.replace(parameters=shown, return_annotation=_as_written(annotation)))
    return Signature(
        tuple(parameters), tuple(layout), result, text, items_in, items_out, stream_parameter, runs_on_loop
    )


def _read_result(where: str, annotation: Any, body: Callable[..., Any]) -> tuple[Any, Any, bool]:
    """The type of the result, that of the items of a stream, and whether the function runs on the loop."""
    is_coroutine = inspect.iscoroutinefunction(body)
    if annotation is MISSING:
        is_async = inspect.isasyncgenfunction(body)
        return Any, Any if is_async or inspect.isgeneratorfunction(body) else NoStream, is_coroutine or is_async
    if not is_stream(annotation):
        if inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body):
            kind = "AsyncIterator" if inspect.isasyncgenfunction(body) else "Iterator"
            raise SignatureError(
                f"{where} is a stream, as the function has a yield: annotate it as {kind}[{_name_of(annotation)}]"
            )
        _check_type(where, annotation)
        return annotation, NoStream, is_coroutine
    is_async = _is_async_stream(annotation)
    if is_coroutine and not is_async:
        raise SignatureError(f"{where} is {_name_of(annotation)}: what an async def streams is an AsyncIterator")
    items, *others = typing.get_args(annotation) or (Any,)
    _check_type(f"{where}, each item,", items)
    result = others[1] if len(others) > 1 and others[1] is not None else type(None)
    _check_type(f"{where}, at the end,", result)
    return result, items, is_async


def _read_stream_in(where: str, parameter: inspect.Parameter, kind: Any, runs_on_loop: bool) -> Any:
    """The type of the items of a stream that comes in."""
    is_async = _is_async_stream(kind)
    if is_async != runs_on_loop:
        wanted, function = ("AsyncIterator", "an async def") if runs_on_loop else ("Iterator", "a def")
        raise SignatureError(f"{where} is {_name_of(kind)}: {function} takes its stream as an {wanted}")
    if parameter.default is not MISSING:
        raise SignatureError(f"{where} is a stream, which has no default: an empty one is as good")
    items = (typing.get_args(kind) or (Any,))[0]
    _check_type(f"{where}, each item,", items)
    return items


def is_stream(kind: Any) -> bool:
    """Whether a type is that of a stream: an iterator or iterable, asynchronous or not, but no file."""
    return _is_among(kind, (*_PLAIN_STREAMS, *_ASYNC_STREAMS))


def _is_async_stream(kind: Any) -> bool:
    return _is_among(kind, _ASYNC_STREAMS)


def _is_among(kind: Any, streams: tuple[Any, ...]) -> bool:
    """Whether a type is one of these, or a kind of iterator that a client hands out."""
    cls = typing.get_origin(kind) or kind
    iterators = tuple(stream for stream in streams if stream in (Iterator, AsyncIterator))
    return cls in streams or (isinstance(cls, type) and issubclass(cls, iterators) and not travels_beside(cls))


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
    if is_stream(kind):
        raise SignatureError(f"{where} is a stream ({_name_of(kind)}) within another value, which no stream can be")
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
        if isinstance(part, msgspec.inspect.CustomType) and not travels_beside(inner):
            raise SignatureError(
                f"{where} cannot travel as {_name_of(kind)}: {_name_of(inner)} is none of builtins, dataclasses, "
                "msgspec.Struct, TypedDict, NamedTuple, Enum, Literal, datetime, UUID and Decimal, and no file, blob "
                "or array either"
            )


def _name_of(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
