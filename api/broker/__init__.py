"""The Celery side: the app, the queues, a job's message and its result, and the state of the fleet.

sending.py sends a job's message, closing.py writes its Celery result, and status.py reads queues and jobs for
monitors. Depends on the job store. Does not know clients, gateways or commands.
"""
