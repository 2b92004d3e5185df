"""Steps take at most a quarter of the lease, so that a long prompt on a slow engine does not lose it."""

from __future__ import annotations

import pytest

from pagefleet.api import FleetClient
from pagefleet.workers.local.local_stack import LocalStack

LEASE_S = 1.5
NUM_PROMPT_TOKENS = 1500
# Steps of the default 512 tokens would take 2 s each.
TOKEN_S = 0.004


@pytest.fixture
def stack(server_binary, tmp_path):
    arguments = ["--model", "null", "--backend", "null", "--null-step-time", "0"]
    arguments += ["--null-token-time", str(TOKEN_S), "--lease-seconds", str(LEASE_S)]
    with LocalStack(tmp_path, arguments, num_workers=2) as stack:
        yield stack


def test_a_prompt_of_four_leases_is_not_taken_over(stack):
    with FleetClient(redis_url=stack.redis_url) as fleet:
        result = fleet.generate(prompt_token_ids=[65] * NUM_PROMPT_TOKENS, max_tokens=8, seed=1).result()
        assert (len(result.token_ids), result.attempts) == (8, 1)
        assert len(fleet.status().workers) == 2
