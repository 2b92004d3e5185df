"""The job protocol on Redis: each state change of a job is one operation, which is one Lua script.

operations.py has the operations as values, without I/O, and operation_types.py their types. job_store.py, for
threads, and async_job_store.py run them; producer_store.py, the part of job_store.py that producers use, is
generated from the latter. replies.py and job_record.py read what plain Redis commands return, prepared.py
turns a caller's fields into a request, and connection.py opens connections and maps their failures to errors.

Depends on the wire contract and the settings. Does not know Celery, clients or HTTP.
"""
