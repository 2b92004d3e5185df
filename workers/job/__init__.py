"""A job as its worker sees it: its Celery message, its choices and their tokens, its times.

Does not know threads, queues or the job store.
"""
