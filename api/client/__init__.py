"""The clients: submit a job, stream its tokens, attach to it from any process.

Depends on the job store and the broker. It does not know HTTP, commands or the engine.
"""
