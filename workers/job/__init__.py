"""A job as its worker sees it: its message, its choices, its times.

Does not know threads, queues or the job store.
"""
