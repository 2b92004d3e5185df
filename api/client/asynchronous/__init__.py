"""The asynchronous client, from which the synchronous one is generated (``make sync-client``).

``batching``, ``context``, ``inbox``, ``resources``, ``subscriber`` and ``tasks`` have hand-written twins in
``synchronous``: they depend on the event loop. All I/O of a client is in these two folders.
"""
