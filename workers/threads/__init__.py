"""Building blocks for a worker's threads: loops, periodic tasks, and calls retried through a Redis outage.

Does not know jobs.
"""
