"""What a worker reports: metrics, logs, one line for each job.

Does not change the state of a job.
"""
