"""What a worker reports: Prometheus metrics, `celery inspect stats`, and logs with one line per job.

Does not change the state of a job.
"""
