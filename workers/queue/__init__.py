"""Between Celery and a worker: lanes, seats, unacknowledged messages, bad messages, callbacks, results.

Does not know the engine.
"""
