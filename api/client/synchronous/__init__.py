"""The synchronous client. Most of it is generated from ``asynchronous`` by ``make sync-client``.

``batching``, ``context``, ``inbox``, ``resources``, ``subscriber`` and ``tasks`` are written by hand: they
depend on threads, locks and forks.
"""
