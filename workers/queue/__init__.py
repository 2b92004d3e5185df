"""Between Celery and a worker: validating, ordering, restoring and acknowledging messages, room for more of
them, results and callbacks in Celery's format.

Does not step the engine and does not know attempts at jobs.
"""
