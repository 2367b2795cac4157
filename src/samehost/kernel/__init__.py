"""The Linux calls, each made the one safe way. No module here waits, except for a lock that it is told to try."""
