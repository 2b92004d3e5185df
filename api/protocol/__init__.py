"""The job protocol: each state change of a job is one method of the job store and one Lua script.

Depends on the wire contract and the settings. It does not know Celery, clients or HTTP.
"""
