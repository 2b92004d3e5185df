"""Recovery from failures: the worker's lease, and the periodic tasks that find what a dead worker, client or
Redis left behind (reaper, sweeper, auditor).

Does not know how this worker runs its own jobs.
"""
