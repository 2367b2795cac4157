"""What a service is, with no socket, clock, thread or loop: methods and their types, policies, errors and figures.

`Service` is what users declare, and `Method` one function of it, read by `signature`. `Call` is what a running method
may know of its call. `remote` is the other side: what a client knows of a method. The front ends run all of this.
"""
