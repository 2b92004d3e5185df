"""The only place where engine and queue meet: a Celery worker whose pool slots are sequences."""
