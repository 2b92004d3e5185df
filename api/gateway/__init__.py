"""The gateway: OpenAI's HTTP API on Starlette. It submits jobs and relays their tokens, and stores nothing.

The state of a request is in Redis or in the id of its answer, so any gateway can continue it. Each endpoint
is a module; the endpoints that generate share ``answers``. The gateway does not tokenize: workers do.
"""
