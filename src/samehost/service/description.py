"""What a service tells of itself, as plain records: `samehost.describe`, `samehost.health` and `samehost.stats`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from samehost.codec import MSGPACK
from samehost.service.schema import schemas_of
from samehost.service.signature import MISSING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from samehost.service.method import Method
    from samehost.service.service import Service

OWN_PREFIX = "samehost."
DESCRIBE = OWN_PREFIX + "describe"
HEALTH = OWN_PREFIX + "health"
STATS = OWN_PREFIX + "stats"


class ParameterDescription(msgspec.Struct, omit_defaults=True):
    """One argument.

    Attributes:
        schema: its type, as JSON Schema (2020-12).
        required: whether it has to be sent.
        default: what stands for it otherwise, as builtin types.
        keyword_only: whether it is sent by its name alone.
    """

    name: str
    schema: dict[str, Any]
    required: bool = True
    default: Any = None
    keyword_only: bool = False


class MethodDescription(msgspec.Struct, omit_defaults=True):
    """One method.

    Attributes:
        signature: as Python writes it, as in `(zone: str = 'UTC') -> datetime.datetime`.
        result: the type of its result, as JSON Schema.
        allow: who may call it, for people; empty for whoever may connect.
        timeout: the most seconds that a call may take; 0 for what its caller says.
        errors: the codes that were declared for it, with `errors=`; it may have others.
    """

    name: str
    signature: str
    parameters: list[ParameterDescription]
    result: dict[str, Any]
    doc: str = ""
    allow: str = ""
    idempotent: bool = False
    timeout: float = 0.0
    errors: list[str] = []


class Description(msgspec.Struct, omit_defaults=True):
    """A service.

    Attributes:
        allow: who may connect, for people; empty for whom the socket's mode lets in.
        methods: by name, in the order of their declaration; samehost's own are left out.
        definitions: the types that the schemas refer to as `#/definitions/NAME`, as JSON Schema.
    """

    service: str
    methods: dict[str, MethodDescription]
    definitions: dict[str, dict[str, Any]] = {}
    allow: str = ""


class Health(msgspec.Struct):
    """How a service is.

    Attributes:
        status: "serving", or "draining" once it was told to end.
        pid: of the process that answers.
        uptime: seconds since it began to serve.
        connections: open now.
        in_flight: calls being answered now, this one among them.
    """

    service: str
    status: str
    pid: int
    uptime: float
    connections: int
    in_flight: int


class MethodFigures(msgspec.Struct):
    """The figures of one method; latencies in seconds, from the arrival of the call to its answer."""

    calls: int
    errors: int
    in_flight: int
    p50: float
    p90: float
    p99: float
    p999: float


class Figures(msgspec.Struct):
    """The figures of a service, since it began to serve.

    Attributes:
        methods: by name; those never called are left out.
        connections: open now, by uid.
        connections_total: accepted so far.
        refused: calls that were answered `busy` or `draining` before they were begun.
        late: frames for calls that had ended.
        uncancellable: methods that went on after they were cancelled, for longer than a second, until now.
    """

    methods: dict[str, MethodFigures]
    connections: dict[int, int]
    connections_total: int
    refused: int
    late: int
    uncancellable: int


def describe(service: Service) -> Description:
    """What a service tells of itself."""
    methods = list(service.methods.values())
    schemas, definitions = schemas_of(_kinds(methods))
    remaining = iter(schemas)
    described = {}
    for method in methods:
        parameters = [
            ParameterDescription(
                parameter.name,
                next(remaining),
                parameter.default is MISSING,
                None if parameter.default is MISSING else msgspec.to_builtins(parameter.default),
                parameter.is_keyword_only,
            )
            for parameter in method.signature.parameters
        ]
        described[method.name] = MethodDescription(
            method.name,
            method.signature.text,
            parameters,
            next(remaining),
            method.doc,
            str(method.allow or ""),
            method.is_idempotent,
            method.timeout or 0.0,
            list(dict.fromkeys(method.errors.values())),
        )
    return Description(service.name, described, definitions, str(service.allow or ""))


_LIMITS = {
    "minimum": ">=",
    "exclusiveMinimum": ">",
    "maximum": "<=",
    "exclusiveMaximum": "<",
    "multipleOf": "a multiple of",
    "minLength": "length >=",
    "maxLength": "length <=",
    "pattern": "like",
    "minItems": "length >=",
    "maxItems": "length <=",
    "minProperties": "length >=",
    "maxProperties": "length <=",
}
"""Keywords of JSON Schema, and how people write them."""


def limits_of(method: MethodDescription) -> list[str]:
    """The limits of each parameter that has some, for people: `size >= 16, <= 512`."""
    limits = ((parameter.name, ", ".join(_limits_in(parameter.schema))) for parameter in method.parameters)
    return [f"{name} {found}" for name, found in limits if found]


def _limits_in(schema: Any) -> list[str]:
    if not isinstance(schema, dict):
        return []
    if isinstance(options := schema.get("anyOf"), list):
        return [limit for option in options for limit in _limits_in(option)]
    if "contentEncoding" in schema or "prefixItems" in schema:
        return []  # these are the lengths of base64, and of tuples
    return [f"{words} {schema[keyword]}" for keyword, words in _LIMITS.items() if keyword in schema]


def _kinds(methods: Iterable[Method]) -> list[Any]:
    """The types of all parameters and results, in the order in which `describe` goes through them."""
    kinds: list[Any] = []
    for method in methods:
        kinds += [parameter.kind for parameter in method.signature.parameters]
        kinds.append(method.signature.result)
    return kinds


_DESCRIPTION = MSGPACK.decode_to(Description)


def read_description(encoded: Any) -> Description:
    """A description that a server has sent.

    Raises:
        CannotDecode: it is none.
    """
    description: Description = _DESCRIPTION(encoded)
    return description
