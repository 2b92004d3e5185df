"""How often the sampler waits for the device in one step: once, however many rows it has."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from sampling_rows import SamplingRow, batch_of
from torch.utils._python_dispatch import TorchDispatchMode

from pagefleet.engine.execution.logprobs import token_logprobs
from pagefleet.engine.sampling.logit_rules import make_logit_rules
from pagefleet.engine.sampling.reference_sampler import ReferenceSampler
from pagefleet.engine.sampling.sampling_batch import GrammarMasks
from pagefleet.engine.sampling.sampling_params import SamplingParams

NUM_ROWS, VOCAB_SIZE = 256, 5003
TO_HOST = ["cpu", "tolist", "item", "__int__", "__float__", "__bool__", "__index__", "__array__"]
WITH_RESULT_OF_ANY_SIZE = ["nonzero", "masked_select", "unique", "bincount", "_local_scalar_dense"]


class _Waits(TorchDispatchMode):
    """Counts the operations that wait for the device: copies to the host, and results whose size depends on
    the numbers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        for name in TO_HOST:
            monkeypatch.setattr(torch.Tensor, name, self._counting(name, getattr(torch.Tensor, name)))

    def _counting(self, name: str, method: Any) -> Any:
        def counting(*args: Any, **kwargs: Any) -> Any:
            self.counts[name] += 1
            return method(*args, **kwargs)

        return counting

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        has_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in WITH_RESULT_OF_ANY_SIZE or has_mask:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def waits(
    monkeypatch: pytest.MonkeyPatch,
    params: list[dict[str, Any]],
    spread: float,
    masks: GrammarMasks | None = None,
) -> Counter[str]:
    """Return the counts of one step on a device, which computes the CPU's tensors here."""
    made = [SamplingParams(**each) for each in params]
    rows = [
        SamplingRow(each, seed, 0, 1, make_logit_rules(each, 3), [1, 2, 3, 4])
        for seed, each in enumerate(made)
    ]
    logits = torch.randn(len(rows), VOCAB_SIZE, generator=torch.Generator().manual_seed(0)) * spread
    batch, sampler = batch_of(rows), ReferenceSampler(on_host=False)
    expected = ReferenceSampler().sample(logits, batch, masks).tolist()
    with monkeypatch.context() as patch, _Waits(patch) as counted:
        found = sampler.sample(logits, batch, masks)
    assert found.tolist() == expected
    return counted.counts


PLAIN: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top_p": {"temperature": 0.8, "top_p": 0.9},
    "top_k": {"temperature": 0.8, "top_k": 40},
    "min_p": {"min_p": 0.05},
}


@pytest.mark.parametrize("name", PLAIN)
def test_256_plain_rows_wait_once(name, monkeypatch):
    assert waits(monkeypatch, [PLAIN[name]] * NUM_ROWS, spread=6.0) == {"cpu": 1}


def test_a_mixture_waits_once_too(monkeypatch):
    mixture = [*PLAIN.values(), {"typical_p": 0.2}, {"top_k": 20, "typical_p": 0.9}]
    assert waits(monkeypatch, mixture * 30, spread=6.0) == {"cpu": 1}


def test_rules_and_grammars_do_not_wait_longer(monkeypatch):
    rules = [
        {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
        {"logit_bias": {7: 3.0}, "temperature": 0.0},
        {"allowed_token_ids": list(range(50, 90))},
    ]
    packed = np.full((8, -(-VOCAB_SIZE // 32)), 0x0F0F0F0F, dtype=np.int32)
    masks = GrammarMasks(np.arange(0, 64, 8), packed)
    assert waits(monkeypatch, [*rules, {}] * 16, spread=6.0, masks=masks) == {"cpu": 1}


def test_rows_that_few_candidates_do_not_decide_wait_once_a_round(monkeypatch):
    """Given nearly equal logits, top_p keeps half of the vocabulary: three rounds of all rows."""
    assert waits(monkeypatch, [{"top_p": 0.5}] * 64, spread=0.01) == {"cpu": 3}


def test_logprobs_of_all_rows_wait_twice(monkeypatch):
    """Once for the number of candidates, and once for the result."""
    logits = torch.randn(64, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    with monkeypatch.context() as patch, _Waits(patch) as counted:
        found = token_logprobs(logits, [7] * 64, list(range(20)) * 3 + [0] * 4)
    assert [len(each.top) for each in found[:20]] == list(range(20))
    assert counted.counts == {"cpu": 1, "nonzero": 1}
