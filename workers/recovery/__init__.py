"""What keeps jobs alive when workers die: lease, sweeper, condemnation, recovery of messages, replay.

Does not know the attempt at a job of this worker.
"""
