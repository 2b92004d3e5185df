"""The load of ``pagefleet bench``: random token ids from a fixed seed, with uniformly distributed lengths."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import NamedTuple


class BenchRequest(NamedTuple):
    prompt_token_ids: list[int]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """``num_requests`` concurrent greedy requests; each runs to its ``max_tokens`` (ignore_eos)."""

    num_requests: int = 64
    prompt_len: tuple[int, int] = (32, 256)
    output_len: tuple[int, int] = (32, 192)
    seed: int = 20261122

    def requests(self, vocab_size: int, round_index: int) -> list[BenchRequest]:
        """Return the requests of one round.

        Each round has different prompts of the same lengths, so that no round profits from the prefix cache
        of an earlier one.
        """
        lengths = random.Random(self.seed)
        tokens = random.Random(f"{self.seed}/{round_index}")
        requests = []
        for _ in range(self.num_requests):
            prompt_len = lengths.randint(*self.prompt_len)
            prompt = [tokens.randrange(vocab_size) for _ in range(prompt_len)]
            requests.append(BenchRequest(prompt, lengths.randint(*self.output_len)))
        return requests

    def describe(self) -> dict[str, object]:
        return asdict(self)
