"""The wire contract: requests, events, results, model cards, errors and the names of Redis keys.

Depends on pydantic only. Every other folder may import it.
"""
