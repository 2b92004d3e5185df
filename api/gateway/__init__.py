"""The front door: HTTP as OpenAI spells it, on Starlette. It enqueues and relays, and holds no state.

Whatever a request needs after its first byte is in Redis or in its id: any replica serves any job. One
endpoint is one module; ``answer.py`` and ``relay.py`` are what the generating ones share. It knows no
tokenizer: the worker tokenises.
"""
