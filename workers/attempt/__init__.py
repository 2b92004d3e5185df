"""One attempt at a job, in this order: admission, engine loop, publisher, finisher. ``pipeline.py`` connects
them.

Does not know the Celery pool, or the recovery of jobs of other workers.
"""
