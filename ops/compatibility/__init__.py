"""Which parts of OpenAI's API the gateway has.

Each row of docs/compatibility.md is a probe that tests/gateway/test_compatibility.py sends to a running
gateway. ``python -m ops.compatibility`` writes the page.
"""
