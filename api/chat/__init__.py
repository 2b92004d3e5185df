"""How models write tool calls and reasoning, and how their text is read back into messages.

Works on text only. It does not know jobs, Redis, HTTP or tokenizers.
"""
