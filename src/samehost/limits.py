"""Every bound that samehost sets, with its unit at the end of its name.

These are defaults: where a bound matters to a user, the function that applies it takes a parameter.
"""

from __future__ import annotations

SUN_PATH_BYTES_MAX = 107
"""Longest path that fits `sockaddr_un` with its closing NUL; also the longest abstract name (unix(7))."""

FILE_NAME_BYTES_MAX = 255
"""Longest component of a path (NAME_MAX)."""

PATH_BYTES_MAX = 4095
"""Longest path (PATH_MAX without its closing NUL)."""

MESSAGE_BYTES_MAX = 64 * 1024
"""What one `recv` takes, and the longest datagram or packet, unless the caller says otherwise."""

FILES_PER_MESSAGE_MAX = 16
"""Files that travel with one message; the kernel's own bound, SCM_MAX_FD, is 253."""

CONNECTIONS_MAX = 1024
"""Connections that a server serves at a time; further ones wait in the backlog."""

DESCRIPTOR_SHARE_MAX = 0.75
"""The part of RLIMIT_NOFILE that a server's connections may use."""

BACKLOG_CONNECTIONS_MAX = 2**31 - 1
"""Asked of listen(2), which lowers it to net.core.somaxconn."""

ACCEPT_PAUSE_SECONDS_MIN = 0.010
ACCEPT_PAUSE_SECONDS_MAX = 1.0
"""How long accepting rests when the process or the host is out of descriptors or memory; doubled each time."""

PATH_CHECK_SECONDS = 2.0
"""How often a listener that is waited on or served looks whether its path is still its own."""

DRAIN_SECONDS = 30.0
"""How long calls in flight may go on once a server was told to end."""

DRAIN_QUIET_SECONDS = 0.25
"""While a server drains, a connection that stays silent this long reads as ended."""

DRAIN_CUT_SECONDS = 1.0
"""How long handlers get to notice that their connections were cut at the end of the drain time."""

DIAL_SECONDS = 30.0
"""How long a client tries to get through a full backlog."""

DIAL_PAUSE_SECONDS_MIN = 0.001
DIAL_PAUSE_SECONDS_MAX = 0.050
"""How long a client rests between two tries; doubled each time."""

DIAL_SETTLE_SECONDS = 0.5
"""How long a client that waits for its server takes "permission denied" for one that is still being set up."""

RECEIVER_FULL_SECONDS = 1.0
"""How long a sender of datagrams waits for room in the receiver's queue, if it sets no timeout."""

SYMBOLIC_LINKS_MAX = 40
"""Links followed in one path, as the kernel does (path_resolution(7))."""

# Services. `samehost.serve` takes some of these as parameters.

CALL_SECONDS = 30.0
"""How long a client waits for an answer, unless it says otherwise."""

MAP_WINDOW = 128
"""Calls that `Client.map` has under way."""

TOPIC_ITEMS = 64
"""Items of a topic that are kept for a subscriber who does not read, unless the topic says otherwise."""

TOPIC_ITEMS_MAX = 65_536
"""The most that a topic may say."""

CONNECTIONS_PER_UID_MAX = 128
"""Connections that one user may have to a service at a time; further ones are closed at once."""

UID_BYTES_MAX = 64 * 1024 * 1024
"""Memory that calls in progress and output that is not read may hold for one user; beyond it, calls fail as `busy`."""

FILES_PER_UID_MAX = 256
"""Files that have come for one user's calls in progress and are open; beyond it, calls with files fail as `busy`."""

CALL_OVERHEAD_BYTES = 1024
"""What a call in progress counts for in that, beside its arguments."""

OUTPUT_BYTES_MAX = 1024 * 1024
"""Output that may be pending on a connection; nothing more is read from it, and no call begun, until it is less."""

ITEMS_BYTES_AT_ONCE = 64 * 1024
"""Items that are put into the output of a connection before it is sent, and made ahead of that in a thread."""

ITEM_OVERHEAD_BYTES = 128
"""What an item counts for in that, beside its value."""

OUTPUT_STALL_SECONDS = 10.0
"""How long a peer may read nothing of the output that is pending for it, and the kernel refuse files that are."""

FILES_PAUSE_SECONDS = 0.010
"""How long output rests when the kernel refuses files, since too many of this user's are on their way."""

PREFACE_SECONDS = 5.0
"""How long a client may take for its preface, from the first byte on."""

FRAME_SECONDS = 10.0
"""How long a client may take for one frame or line, from the first byte on."""

HANGUP_SECONDS = 0.05
"""How often a client that has ended its output is looked at, to see whether it still reads."""

THREADS_MAX = 32
"""Threads that run the `def` methods of a service."""

CANCEL_SECONDS = 1.0
"""How long a method may go on once it was cancelled or its deadline passed, before that is reported."""

LOOP_BLOCKED_SECONDS = 1.0
"""How long a service's event loop may be held up before that is reported."""

RECEIVE_BYTES = 264 * 1024
"""What is read from a connection at a time, when there is much: a frame with 256 KiB in it."""

RECEIVE_BYTES_AT_FIRST = 72 * 1024
"""What is read at a time otherwise: a frame with 64 KiB in it. Room for twice as much takes longer to be had than a
short frame takes to be read."""

LONG_READS_KEPT = 64
"""For how many short reads room for long ones is kept up."""

BUSY_WAIT_SECONDS_MAX = 0.020
"""The longest that `busy_wait` may be; to be woken takes less than a hundredth of it."""

BUSY_WAIT_SHARE = 0.01
"""The part of the time that an end looks in vain for what does not come soon enough."""

BUSY_WAITS_IN_VAIN = 4
"""How often in a row it does so before it keeps to that."""

# Blobs.

BLOB_BYTES_MIN = 256 * 1024
"""From this size on, bytes and arrays travel as blobs by themselves: where calls with bytes that were copied into the
arena, and out of it, began to be faster than those with the bytes in the socket. Below 128 KiB they were slower."""

ARENA_BYTES_MAX = 1024 * 1024 * 1024
"""Memory for blobs that a process has in all."""

ARENA_SEGMENT_BYTES = 16 * 1024 * 1024
"""The least that is taken from the kernel for them at a time."""

ARENA_IDLE_BYTES = 256 * 1024 * 1024
"""How much of it is kept for further blobs when it is free; the rest goes back."""

BLOBS_OUT_BYTES_MAX = 512 * 1024 * 1024
"""Memory for blobs that one peer may have been sent and not released; until it is less, it gets copies of its own."""

STREAM_BLOBS_BYTES_MAX = 64 * 1024 * 1024
STREAM_BLOBS_MIN = 2
"""Memory for blobs that one stream may have out before it waits for its reader, but at least so many of them."""

STREAM_BLOBS_SECONDS = 1.0
"""How long such a stream waits for a reader who may be keeping all that he got; doubled each time."""

# The protocol, docs/PROTOCOL.md section 11. A peer may announce another value for those that say so.

PAYLOAD_BYTES_MAX = 4 * 1024 * 1024
"""Longest payload of a frame, and longest line of JSON; announced in the preface."""

PAYLOAD_BYTES_FLOOR = 64 * 1024
"""The least that a peer may announce for its payloads."""

PREFACE_BYTES_MAX = 256
"""Longest preface of any version."""

CALLS_MAX = 256
"""Calls that one connection may have open in one direction; announced. A cancelled one counts until it is answered."""

METHOD_BYTES_MAX = 255
"""Longest name of a method, in UTF-8."""

CONTEXT_BYTES_MAX = 4096
"""Longest context of a call."""

NOTE_BYTES_MAX = 64 * 1024
"""Longest note on a call."""

ERROR_CODE_BYTES_MAX = 64
"""Longest code of an error."""

ERROR_MESSAGE_BYTES_MAX = 4096
"""Longest message of an error; a sender cuts what is longer."""

ERROR_ID_BYTES_MAX = 64
"""Longest id under which an error is found in the log of whoever raised it."""

WINDOW_ITEMS = 64
WINDOW_BYTES = 256 * 1024
"""The credit that every stream begins with, in either direction."""

WINDOW_ITEMS_MAX = 2048
"""How many items the window of a stream may grow to, in no more bytes, while its sender and its reader both wait for
nothing but credit."""

CREDIT_MAX = 2**31 - 1
"""The most items, and the most bytes, that a stream's credit may come to."""

NESTING_MAX = 64
"""How deep a value may be nested; checked by whoever decodes it."""

JSON_ID_BYTES_MAX = 128
"""Longest id of a JSON-RPC request."""

BATCH_CALLS_MAX = 256
"""Requests in one JSON-RPC batch."""

JOIN_BYTES_MAX = 32 * 1024
"""Up to this size, output is copied together so that one sendmsg takes it; beyond, a copy costs more than a call."""

ALONE_BYTES_MAX = 256 * 1024
"""Up to this size, a call that is the only one is copied together: its copy costs less than the way of all others."""

METHOD_NAMES_KEPT = 256
"""Names of methods that a connection keeps encoded."""

ARENAS_MAX = 64
"""Arenas that each end of a connection may have passed and not retired."""

RELEASES_PER_FRAME_MAX = 512
"""Shares of arenas that one frame gives back."""

BLOB_BYTES_MAX = 1024 * 1024 * 1024
"""Longest blob, and largest arena."""
