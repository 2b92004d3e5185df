"""From a job's stream to an HTTP response: request fields, the relay, server-sent events, whole answers, ids.

Does not know the endpoints: each of them passes in the shape of its answers.
"""
