"""From a job's stream to an HTTP answer: the relay, server-sent events, whole answers, ids.

Does not know single endpoints: each passes in the shape of its answer.
"""
