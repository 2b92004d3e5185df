"""HTTP without pagefleet: bodies, errors, server-sent events, the server's protocol class.

Does not know jobs, models or API keys.
"""
