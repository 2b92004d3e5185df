"""``pagefleet top``: read the state of a fleet from Redis with a monitor's rights, and draw it.

Does not know Celery's events or the clients.
"""
