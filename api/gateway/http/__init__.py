"""HTTP: request bodies, errors, server-sent events, and the protocol class of the server.

Does not know jobs, models or API keys.
"""
