"""Threads of a worker: loops, periodic work, calls that are repeated through an outage.

Does not know jobs.
"""
