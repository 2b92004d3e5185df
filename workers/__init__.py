"""The worker process: a Celery worker whose pool slots are jobs in one batch. It joins queue and engine."""
