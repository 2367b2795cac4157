"""The front end for threads: each call waits until it is done, its deadline passes, or the listener is closed."""
