"""What of OpenAI's API the gateway has, asked of a running one: each row of docs/compatibility.md is a probe
that tests/gateway/test_compatibility.py sends. ``python -m ops.compatibility`` writes the page."""
