"""samehost's own rows: a service for all of them, and clients for each kind of measurement.

They are the whole product as users have it: the caller's identity, types checked on both sides, deadlines, limits and
statistics are on. They may run by another interpreter than the rest, so they import nothing from outside but samehost
and uvloop.
"""
