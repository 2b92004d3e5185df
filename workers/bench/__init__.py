"""The measurements of ``pagefleet bench``: workloads, runs, timings and reports.

Does not know Celery or the protocol: a fleet is measured through its clients.
"""
