"""What is declared with a topic, and where its values go. Serving it is the servers' part."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from samehost import Service, allow, limits
from samehost.errors import SignatureError, UsageError
from samehost.protocol import ITEMS_WANTED
from samehost.service.signature import NoStream


class Kept:
    """An outlet that keeps what is published."""

    def __init__(self, subscribers: int = 1, dropped: int = 0) -> None:
        self.subscribers = subscribers
        self.dropped = dropped
        self.values: list[Any] = []

    def publish(self, value: Any) -> None:
        self.values.append(value)


def test_a_topic_has_what_it_was_declared_with():
    policy = allow(uid=0)
    topic = Service("clock").topic("ticks", datetime, queue=3, slow="disconnect", allow=policy, doc="  The time.")
    assert (topic.name, topic.kind, topic.queue, topic.slow) == ("ticks", datetime, 3, "disconnect")
    assert (topic.allow, topic.doc, topic.shape) == (policy, "The time.", ITEMS_WANTED)
    assert repr(topic) == "<Topic ticks of collections.abc.AsyncIterator[datetime.datetime]>"


def test_a_topic_looks_as_a_method_without_parameters_that_streams():
    found = Service("clock").topic("ticks", int).signature
    assert (found.parameters, found.items_out, found.items_in, found.result) == ((), int, NoStream, type(None))


def test_a_topic_keeps_some_items_and_drops_the_oldest_unless_it_says_otherwise():
    topic = Service("clock").topic("ticks")
    assert (topic.kind, topic.queue, topic.slow, topic.allow) == (Any, limits.TOPIC_ITEMS, "drop", None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"slow": "wait"}, "ticks: slow='wait' is not one of 'drop', 'disconnect'"),
        ({"queue": 0}, "ticks: queue=0 is not a number of items from 1 to 65536"),
        ({"queue": 65_537}, "ticks: queue=65537 is not"),
        ({"queue": "many"}, "ticks: queue='many' is not"),
        ({"allow": 0}, "ticks: allow=0 is not a policy"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options, told):
    service = Service("clock")
    with pytest.raises(UsageError) as caught:
        service.topic("ticks", **options)
    assert str(caught.value).startswith(told)
    assert not service.topics


def test_a_type_that_cannot_travel_is_refused():
    with pytest.raises(SignatureError, match="the topic ticks: the result, each item, cannot travel as complex"):
        Service("clock").topic("ticks", complex)


def test_topics_and_methods_share_their_names():
    service = Service("clock")
    topic = service.topic("ticks")
    assert dict(service.topics) == {"ticks": topic}
    with pytest.raises(UsageError, match="has a method 'ticks' already"):
        service.topic("ticks")
    with pytest.raises(UsageError, match="has a method 'ticks' already"):
        service.method(name="ticks")(print)
    assert "ticks" in repr(service)


def test_what_is_published_goes_to_all_who_are_attached():
    topic = Service("clock").topic("ticks")
    first, second = Kept(2, 5), Kept()
    topic.publish("nobody hears this")
    topic.attach(first)
    topic.publish(1)
    topic.attach(second)
    topic.publish(2)
    assert (topic.subscribers, topic.dropped) == (3, 5)
    topic.detach(first)
    topic.publish(3)
    assert (first.values, second.values, topic.subscribers) == ([1, 2], [2, 3], 1)
