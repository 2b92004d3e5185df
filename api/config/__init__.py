"""Settings of the producer, the gateway and Flower.

The environment is read here and in ``workers/settings.py`` only.

Does not know jobs, Redis or Celery.
"""
