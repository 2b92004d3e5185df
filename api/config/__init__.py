"""Settings of clients, the gateway and Flower; installed extras; log format; event loop.

The environment is read here and in ``workers/settings.py`` only.

Does not know jobs, Redis or Celery.
"""
