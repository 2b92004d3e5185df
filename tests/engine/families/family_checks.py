"""The checks that every model family must pass, against transformers on tiny random checkpoints.

A family's module is a class with its variants. Each check runs for each of them:

    class TestFalcon(FamilyChecks):
        prefix = "Falcon"                         # of FalconConfig and FalconForCausalLM in transformers
        options = {"alibi": False}                # of all variants; family_harness.SIZES has the sizes
        variants = {
            "plain": Variant(neighbours={"Llama": "has no tensor", "GPTNeoX": DIFFERS}),
            "yarn": Variant({"rope_parameters": {...}}),
        }

- The first variant is the usual one: `make test` compares its logits and tokens, also after a takeover and
  with prefix hits. `make test` also tries all neighbours, and `make test-slow` runs the other checks. In a
  class with `thorough = True`, `make test` compares logits and tokens of every variant, and runs most checks
  of the first one.
- `neighbours` shows that the checks need the family's own code: the code of another family loads the same
  checkpoint. It must refuse it with this sentence, or compute other logits than transformers (DIFFERS). Name
  the families whose code is most alike. At least one variant must have a neighbour.
- It is an error if the options of a variant do not change the logits.
- Set `prompt_lengths` and `max_model_len` for RoPE kinds that change at a boundary.
- Replace `make_config` if the config is nested.
- Until a variant works: Variant(..., marks=[pytest.mark.xfail(strict=True)]).

Run `pytest tests/engine/families/test_llama.py`, with `-m 'not slow'` for what `make test` runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from family_harness import (
    DIFFERS,
    NUM_TOKENS,
    Answer,
    Case,
    Family,
    Text,
    Variant,
    greedy,
    requests_of,
    run,
    sampled,
    with_all_logprobs,
)

from pagefleet.engine import EngineRequest, LLMEngine, SamplingParams
from pagefleet.engine.backends.cpu.native import Library
from pagefleet.engine.errors import ModelLoadError

__all__ = ["DIFFERS", "FamilyChecks", "Variant"]

CHUNK = 23
"""Tokens of a step. The prompts are computed in uneven parts, side by side: long and short ones, with and
without a context."""
BRANCHES = [5, 6, 7]
"""The only tokens that may be chosen where texts shall repeat n-grams, for speculation."""

Check = TypeVar("Check", bound=Callable[..., None])


def everyday(check: Check) -> Check:
    """Let `make test` run this check for the first variant; conftest.py marks all others as slow."""
    check.everyday = True  # type: ignore[attr-defined]
    return check


def compare(engine: LLMEngine, texts: Sequence[Text]) -> None:
    """Generate all texts in one batch: their tokens equal transformers', and all logits, of prompts and
    outputs, are within the tolerance.

    Logits are compared as log-probabilities: they are the logits minus one number for each position.
    """
    answers = run(engine, requests_of(texts, with_all_logprobs(greedy())))
    for text, answer in zip(texts, answers.values(), strict=True):
        expected = text.logits.double().log_softmax(-1)
        errors = (torch.stack(answer.logprobs) - expected).abs().amax(-1)
        # Where the tokens differ, the logits of later positions do so too.
        num_same = len(text.prompt) + num_equal(answer.token_ids, text.tokens)
        wrong = (~(errors[:num_same] <= text.tolerance)).nonzero().flatten().tolist()
        assert not wrong, (
            f"logits differ by {float(errors[wrong[0]]):.1e} at position {wrong[0]}, and at {len(wrong)} of "
            f"{num_same} positions; the prompt has {len(text.prompt)} tokens"
        )
        assert answer.token_ids == text.tokens


def num_equal(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens are equal before the first difference."""
    pairs = zip(first, second, strict=True)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), len(first))


def continue_after(
    engine: LLMEngine,
    texts: Sequence[Text],
    params: SamplingParams,
    cuts: Sequence[int],
    most: int = NUM_TOKENS,
) -> None:
    """Continue each text after each of `cuts` output tokens, as a worker does with the log of a dead one: the
    next tokens, at most `most`, are the same."""
    requests, expected = [], {}
    for index, text in enumerate(texts):
        for cut in cuts:
            name, end = f"text {index} after {cut} tokens", min(cut + most, NUM_TOKENS)
            expected[name] = text.tokens[cut:end]
            logs = [text.tokens[:cut]]
            requests.append(EngineRequest(name, text.prompt, replace(params, max_tokens=end), logs=logs))
    answers = run(engine, requests)
    assert {name: answer.token_ids for name, answer in answers.items()} == expected


def tokens_of(answers: Mapping[str, Answer]) -> list[list[int]]:
    return [answer.token_ids for answer in answers.values()]


class FamilyChecks(Family):
    """The checks; a family's class derives from this one."""

    thorough = False
    """Whether `make test` runs more of the checks: for families whose parts many others share."""

    @everyday
    def test_logits_and_tokens_equal_those_of_transformers(self, case: Case) -> None:
        """Given prompts of uneven lengths in small steps, side by side."""
        compare(case.engine(max_num_batched_tokens=CHUNK), case.texts)

    @everyday
    def test_cpu_backend(self, case: Case, kernels: Library) -> None:
        """The kernels in C++ give transformers' logits and tokens, too."""
        engine = case.engine(backend="cpu", max_num_batched_tokens=CHUNK)
        assert engine.info.fingerprint.backend == f"cpu {kernels.targets[0]}"
        compare(engine, case.texts)

    def test_whole_prompts(self, case: Case) -> None:
        engine = case.engine()
        compare(engine, case.texts)
        assert engine.stats().num_steps == NUM_TOKENS

    @everyday
    def test_takeover(self, case: Case) -> None:
        engine = case.engine(enable_prefix_caching=False)
        continue_after(engine, case.texts, greedy(), [1, NUM_TOKENS // 2, NUM_TOKENS - 1])

    @everyday
    def test_prefix_hits(self, case: Case) -> None:
        """Given the first half of each text in the cache, the second half is the same."""
        engine, half = case.engine(), NUM_TOKENS // 2
        run(engine, requests_of(case.texts, greedy(max_tokens=half)))
        before = engine.stats().prefix_cache_hits
        halves = [
            Text([*text.prompt, *text.tokens[:half]], text.tokens[half:], text.logits) for text in case.texts
        ]
        answers = run(engine, requests_of(halves, greedy(max_tokens=NUM_TOKENS - half)))
        assert tokens_of(answers) == [text.tokens for text in halves]
        assert engine.stats().prefix_cache_hits > before

    def test_preemption(self, case: Case) -> None:
        """Given one block more than the longest text needs, or than two prompts need, sequences lose theirs
        and are computed again."""
        required = case.engine().num_required_blocks
        lengths = sorted(len(text.prompt) for text in case.texts)
        num_blocks = max(required(lengths[-1] + NUM_TOKENS), sum(map(required, lengths[:2]))) + 1
        engine = case.engine(num_blocks=num_blocks)
        assert tokens_of(run(engine, requests_of(case.texts, greedy()))) == [
            text.tokens for text in case.texts
        ]
        assert engine.stats().num_preemptions > 0

    @pytest.mark.slow
    def test_speculation(self, case: Case) -> None:
        """Given three tokens to choose from, n-grams repeat, and some drafts are right and others wrong."""
        params = sampled(allowed_token_ids=BRANCHES)
        expected = tokens_of(run(case.engine(), requests_of(case.texts, params)))
        engine = case.engine(num_speculative_tokens=8)
        assert tokens_of(run(engine, requests_of(case.texts, params))) == expected
        stats = engine.stats()
        assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens

    @pytest.mark.slow
    def test_float64(self, case: Case) -> None:
        compare(case.engine("float64", max_num_batched_tokens=CHUNK), case.oracle_float64.texts)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_takeover_after_any_token(self, case: Case, dtype: str) -> None:
        """Greedy texts of transformers, and sampled ones of an unbroken run."""
        texts = case.texts if dtype == "float32" else case.oracle_float64.texts
        engine = case.engine(dtype, enable_prefix_caching=False)
        continue_after(engine, texts, greedy(), range(NUM_TOKENS), most=4)
        answers = run(engine, requests_of(texts, sampled()))
        others = [
            replace(text, tokens=tokens) for text, tokens in zip(texts, tokens_of(answers), strict=True)
        ]
        assert all(len(set(text.tokens)) > NUM_TOKENS // 2 for text in others)
        continue_after(engine, others, sampled(), range(NUM_TOKENS), most=4)

    def test_neighbour(self, case: Case, neighbour: str, tmp_path: Path) -> None:
        """Given the checkpoint under another family's name, it is refused or the comparison fails."""
        folder = case.checkpoint_of(neighbour, tmp_path / "neighbour")
        reason = case.variant.neighbours[neighbour]
        if reason == DIFFERS:
            engine = case.engine(folder=folder)
            with pytest.raises(AssertionError, match="logits"):
                compare(engine, case.texts)
        else:
            with pytest.raises(ModelLoadError, match=reason):
                case.engine(folder=folder)
