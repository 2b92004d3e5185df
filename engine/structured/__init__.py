"""Structured output: from a JSON schema, regex, choice or grammar to masks of the tokens that may come next.

structured_output.py is what a caller asks for; grammar_notations.py compiles it, and json_schema.py,
schema_graph.py and ecma_regex.py rewrite it for the library first. grammar.py is the result, which a sequence
follows token by token, and wind_down.py closes a JSON text in time. Does not know the scheduler or torch.
"""
