"""The tree of errors: one root, and the built-in that people already catch."""

from __future__ import annotations

import inspect

import pytest

from samehost import Peer, errors


def test_everything_is_under_one_root():
    raised = [one for _, one in inspect.getmembers(errors, inspect.isclass) if one.__module__ == errors.__name__]
    assert len(raised) > 10
    assert all(issubclass(one, errors.Error) for one in raised)


@pytest.mark.parametrize(
    ("ours", "built_in"),
    [
        (errors.AddressError, ValueError),
        (errors.PolicyError, ValueError),
        (errors.MessageTooLarge, ValueError),
        (errors.AddressInUse, OSError),
        (errors.NotASocket, OSError),
        (errors.Unavailable, ConnectionError),
        (errors.ConnectionClosed, ConnectionError),
        (errors.NotPermitted, PermissionError),
        (errors.DeadlineExceeded, TimeoutError),
    ],
)
def test_the_built_in_catches_it_and_the_message_is_ours(ours, built_in):
    with pytest.raises(built_in, match=r"^who, what and which limit$"):
        raise ours("who, what and which limit")


def test_a_peer_s_mistake_is_not_ours():
    for theirs in (errors.UnexpectedFiles, errors.ForbiddenMessage):
        assert issubclass(theirs, errors.PeerError)
        assert not issubclass(theirs, errors.UsageError)


def test_an_untrusted_server_is_named():
    server = Peer(7, 7, (), 1)
    error = errors.UntrustedServer("somebody else", server)
    assert error.peer is server
    assert str(error) == "somebody else"
    assert isinstance(error, errors.NotPermitted)
