"""What a service tells of itself, as plain records: `samehost.describe`, `samehost.health` and `samehost.stats`."""

# Annotations are no texts here, as msgspec would have to compile each, whenever a client starts.

from typing import TYPE_CHECKING, Any

import msgspec

from samehost.codec import MSGPACK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from samehost.service.method import Method
    from samehost.service.schema import Schema
    from samehost.service.service import Service
    from samehost.service.signature import Signature
    from samehost.service.topic import Topic

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


class TopicDescription(msgspec.Struct):
    """What is particular to a method that subscribes to a topic.

    Attributes:
        queue: items kept for a subscriber who does not read.
        slow: what becomes of one whose queue is full: "drop", the oldest goes; "disconnect", the subscription ends.
    """

    queue: int
    slow: str


class MethodDescription(msgspec.Struct, omit_defaults=True):
    """One method.

    Attributes:
        signature: as Python writes it, as in `(zone: str = 'UTC') -> datetime.datetime`.
        result: the type of its result, or of the value at the end of a stream, as JSON Schema.
        allow: who may call it, for people; empty for whoever may connect.
        timeout: the most seconds that a call may take; 0 for what its caller says.
        errors: the codes that were declared for it, with `errors=`; it may have others.
        items_out: the type of the items that it streams; None if it does not.
        items_in: the type of the items that it takes from its caller; None if it takes none.
        stream_parameter: the name of the parameter that takes them.
        stream_position: how many of the other parameters are declared before that one.
        topic: what the topic is like that this subscribes to; None for other methods.
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
    items_out: dict[str, Any] | None = None
    items_in: dict[str, Any] | None = None
    stream_parameter: str = ""
    stream_position: int = 0
    topic: TopicDescription | None = None

    def schemas(self) -> list[dict[str, Any]]:
        """Those of its parameters, result and items."""
        streams = [schema for schema in (self.items_out, self.items_in) if schema is not None]
        return [*(parameter.schema for parameter in self.parameters), self.result, *streams]


class Description(msgspec.Struct, omit_defaults=True):
    """A service.

    Attributes:
        allow: who may connect, for people; empty for whom the socket's mode lets in.
        methods: by name, in the order of their declaration, topics at the end; samehost's own are left out.
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


class TopicFigures(msgspec.Struct):
    """The figures of one topic.

    Attributes:
        subscribers: now.
        published: values, while somebody subscribed.
        dropped: items that a subscriber did not get, each counted once for each of them.
    """

    subscribers: int
    published: int
    dropped: int


class Figures(msgspec.Struct):
    """The figures of a service, since it began to serve.

    Attributes:
        methods: by name; those never called are left out.
        connections: open now, by uid.
        connections_total: accepted so far.
        refused: calls that were answered `busy` or `draining` before they were begun.
        late: frames for calls that had ended.
        uncancellable: methods that went on after they were cancelled, for longer than a second, until now.
        topics: by name.
    """

    methods: dict[str, MethodFigures]
    connections: dict[int, int]
    connections_total: int
    refused: int
    late: int
    uncancellable: int
    topics: dict[str, TopicFigures] = {}


def describe(service: "Service") -> Description:
    """What a service tells of itself."""
    from samehost.service.schema import schemas_of

    methods: list[Method | Topic] = [*service.methods.values(), *service.topics.values()]
    schemas, definitions = schemas_of(kind for method in methods for kind in _kinds(method.signature))
    remaining = iter(schemas)
    described = {method.name: _described(method, remaining) for method in methods}
    return Description(service.name, described, definitions, str(service.allow or ""))


def _described(method: "Method | Topic", schemas: "Iterator[Schema]") -> MethodDescription:
    """What there is to tell of one method.

    Args:
        schemas: of its types, in the order of `_kinds`.
    """
    from samehost.service.signature import MISSING, NoStream
    from samehost.service.topic import Topic

    contract = method.signature
    parameters = [
        ParameterDescription(
            parameter.name,
            next(schemas),
            parameter.default is MISSING,
            None if parameter.default is MISSING else msgspec.to_builtins(parameter.default),
            parameter.is_keyword_only,
        )
        for parameter in contract.parameters
    ]
    found = MethodDescription(
        method.name,
        contract.text,
        parameters,
        next(schemas),
        method.doc,
        str(method.allow or ""),
        items_out=None if contract.items_out is NoStream else next(schemas),
        items_in=None if contract.items_in is NoStream else next(schemas),
        stream_parameter=contract.stream_parameter,
        stream_position=_position_of_items(contract),
    )
    if isinstance(method, Topic):
        found.topic = TopicDescription(method.queue, method.slow)
    else:
        found.idempotent = method.is_idempotent
        found.timeout = method.timeout or 0.0
        found.errors = list(dict.fromkeys(method.errors.values()))
    return found


def _position_of_items(contract: "Signature") -> int:
    """How many of the parameters that are sent come before the stream; 0 without one."""
    from samehost.service.signature import Items

    position = 0
    for _, filled_in, _ in contract.layout:
        if filled_in is Items:
            return position
        position += filled_in is None
    return 0


def _kinds(contract: "Signature") -> list[Any]:
    """The types of parameters, result and items."""
    from samehost.service.signature import NoStream

    streams = [kind for kind in (contract.items_out, contract.items_in) if kind is not NoStream]
    return [*(parameter.kind for parameter in contract.parameters), contract.result, *streams]


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
    """The limits of each parameter that has some, or whose items have, for people: `size >= 16, <= 512`."""
    schemas = [(parameter.name, parameter.schema) for parameter in method.parameters]
    schemas += [(f"each of {method.stream_parameter}", method.items_in or {})] if method.stream_parameter else []
    limits = ((name, ", ".join(_limits_in(schema))) for name, schema in schemas)
    return [f"{name} {found}" for name, found in limits if found]


def _limits_in(schema: Any) -> list[str]:
    if not isinstance(schema, dict):
        return []
    if isinstance(options := schema.get("anyOf"), list):
        return [limit for option in options for limit in _limits_in(option)]
    if "contentEncoding" in schema or "prefixItems" in schema:
        return []  # these are the lengths of base64, and of tuples
    return [f"{words} {schema[keyword]}" for keyword, words in _LIMITS.items() if keyword in schema]


_WHEN_FULL = {"drop": "drops the oldest", "disconnect": "then ends the subscription"}


def rules_of(topic: TopicDescription) -> str:
    """What becomes of the items that a subscriber does not read, for people."""
    return f"keeps {topic.queue} item{'s' * (topic.queue != 1)}, {_WHEN_FULL.get(topic.slow, topic.slow)}"


_DESCRIPTION = MSGPACK.decode_to(Description)


def read_description(encoded: Any) -> Description:
    """A description that a server has sent.

    Raises:
        CannotDecode: it is none.
    """
    description: Description = _DESCRIPTION(encoded)
    return description
