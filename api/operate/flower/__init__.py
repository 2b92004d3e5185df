"""Flower with columns, pages and options for jobs. Only ``pagefleet flower`` imports it.

Does not know the job store: everything that Flower shows comes from Celery's events.
"""
