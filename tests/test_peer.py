"""Peers, and the policies that decide over them."""

from __future__ import annotations

import grp
import os
import pwd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samehost import ANYONE, Peer, allow
from samehost.errors import PolicyError
from samehost.peer import UNKNOWN_ID, same_user_or_root

# Few ids, so that policies and peers often meet.
ids = st.integers(0, 4)
some_ids = st.one_of(st.none(), ids, st.sets(ids, min_size=1))
peers = st.builds(Peer, ids, ids, st.lists(ids, max_size=3).map(tuple), st.integers(0, 9))
conditions = st.tuples(some_ids, some_ids).filter(any).map(lambda pair: allow(uid=pair[0], gid=pair[1]))
policies = st.recursive(
    st.one_of(conditions, st.just(ANYONE)), lambda inner: st.builds(lambda a, b: a | b, inner, inner)
)


def a_peer(uid=1000, gid=1000, groups=(), pid=1):
    return Peer(uid, gid, groups, pid)


def test_by_uid():
    assert allow(uid=1000).admits(a_peer())
    assert not allow(uid=1001).admits(a_peer())
    assert allow(uid=[1001, 1000]).admits(a_peer())


def test_by_group_counts_the_own_and_the_supplementary_ones():
    assert allow(gid=1000).admits(a_peer())
    assert allow(gid=7).admits(a_peer(groups=(5, 7)))
    assert not allow(gid=7).admits(a_peer(groups=(5,)))


def test_uid_and_gid_together_must_both_hold():
    both = allow(uid=1000, gid=7)
    assert both.admits(a_peer(gid=7))
    assert not both.admits(a_peer(gid=8))
    assert not both.admits(a_peer(uid=1001, gid=7))


def test_a_number_and_a_name_of_the_same_kind_are_alternatives():
    root_or_7 = allow(uid=7, user="root")
    assert root_or_7.admits(a_peer(uid=0))
    assert root_or_7.admits(a_peer(uid=7))
    assert not root_or_7.admits(a_peer(uid=8))


def test_names_are_looked_up():
    nobody, its_group = pwd.getpwnam("nobody"), grp.getgrgid(pwd.getpwnam("nobody").pw_gid)
    assert allow(user="nobody") == allow(uid=nobody.pw_uid)
    assert allow(user=["nobody", "root"]) == allow(uid={0, nobody.pw_uid})
    assert allow(group=its_group.gr_name) == allow(gid=its_group.gr_gid)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "needs a condition"),
        ({"uid": ()}, "uid and user are empty"),
        ({"uid": 0, "group": []}, "gid and group are empty"),
        ({"uid": -1}, "uid=-1 is not an id"),
        ({"gid": 2**32 - 1}, "is not an id"),  # what chown(2) takes for "leave it"
        ({"uid": True}, "uid=True is not an id"),
        ({"uid": 1.5}, "uid=1.5 is not an id"),
        ({"uid": "12"}, "uid='12' is not an id"),
        ({"uid": b"12"}, "uid=b'12' is not an id"),  # not the uids 49 and 50
        ({"user": 0}, "user=0 is not a name: for a number, use uid="),
        ({"user": "no such user"}, "there is no user 'no such user'"),
        ({"group": "no such group"}, "there is no group 'no such group'"),
        ({"user": "root\0"}, "there is no user"),
        ({"group": "\ud800"}, "there is no group"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(PolicyError, match=said):
        allow(**wrong)


def test_a_policy_says_what_it_admits():
    assert str(allow(uid=[7, 0], gid=5) | allow(gid=9)) == "uid 0 or 7 with gid 5, or gid 9"
    assert str(ANYONE) == "anyone"
    assert repr(allow(uid=0)) == "<Policy: uid 0>"


def test_a_policy_combines_with_policies_alone():
    with pytest.raises(TypeError):
        allow(uid=0) | 7
    assert allow(uid=0) != 0


def test_same_user_or_root():
    assert same_user_or_root() == allow(uid={0, os.geteuid()})


@given(policies, policies, peers)
def test_either_side_of_an_or_is_enough(one, other, peer):
    assert (one | other).admits(peer) == (one.admits(peer) or other.admits(peer))


@given(policies, policies, policies)
def test_order_grouping_and_repetition_do_not_matter(one, other, third):
    assert one | other == other | one
    assert hash(one | other) == hash(other | one)
    assert (one | other) | third == one | (other | third)
    assert one | one == one


@given(some_ids, some_ids, peers)
def test_a_condition_with_both_parts_is_the_narrower_of_the_two(uid, gid, peer):
    if uid is not None and gid is not None:
        assert allow(uid=uid, gid=gid).admits(peer) == (allow(uid=uid).admits(peer) and allow(gid=gid).admits(peer))


@given(policies, peers, st.integers(0, 2**22))
def test_the_pid_decides_nothing(policy, peer, other_pid):
    assert policy.admits(peer) == policy.admits(Peer(peer.uid, peer.gid, peer.groups, other_pid))


@given(policies, peers)
def test_anyone_is_anyone(policy, peer):
    assert ANYONE.admits(peer)
    assert (policy | ANYONE).admits(peer)


def test_a_peer_says_who_it_is():
    assert str(Peer(0, 5, (), 7)) == "uid 0 (root), gid 5, pid 7"
    assert repr(Peer(0, 5, (6,), 7)) == "Peer(uid=0, gid=5, groups=(6,), pid=7)"


def test_a_uid_without_a_name():
    peer = Peer(2**32 - 9, 5, (), 7)
    assert peer.user is None
    assert str(peer) == f"uid {2**32 - 9}, gid 5, pid 7"


def test_the_pidfd_is_opened_at_its_first_use_once_and_closed_once():
    opened = []

    def open_pidfd():
        opened.append(os.pidfd_open(os.getpid()))
        return opened[-1]

    peer = Peer(0, 0, (), 1, open_pidfd)
    assert opened == []
    assert peer.pidfd == peer.pidfd == opened[0]
    peer.close()
    peer.close()
    assert peer.pidfd is None
    assert len(opened) == 1


def test_a_peer_without_a_pidfd_has_none():
    peer = Peer(0, 0, (), 1)
    assert peer.pidfd is None
    peer.close()


@pytest.mark.parametrize("is_gone", [False, True])
def test_of_two_who_open_the_pidfd_at_once_one_descriptor_stays(is_gone):
    kept = os.dup(0)
    surplus = os.dup(0)
    answers = [kept, None if is_gone else surplus]

    def open_pidfd():
        if len(answers) == 2:
            answer = answers.pop()
            assert peer.pidfd == kept  # as another thread would, between our opening and our keeping it
            return answer
        return answers[0]

    peer = Peer(0, 0, (), os.getpid(), open_pidfd)
    assert peer.pidfd == kept
    if is_gone:  # the process has ended meanwhile, so there was nothing to open
        os.close(surplus)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(surplus)
    peer.close()


def test_what_the_kernel_did_not_tell_is_not_shown():
    assert str(Peer(54321, UNKNOWN_ID, (), 0)) == "uid 54321, pid not visible"
