"""One attempt at a job: admission, the engine loop, the publisher and the finisher, in this order.

Does not know the Celery pool or the recovery of other workers' jobs.
"""
