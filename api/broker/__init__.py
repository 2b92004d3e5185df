"""The Celery side of a producer: the app, the queues, the message of a job and its result.

Depends on the job store below it. It does not know clients, gateways or commands.
"""
