"""compare: a checkpoint's greedy texts and logits against transformers, in float32."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from pagefleet.engine.errors import EngineError
from pagefleet.engine.llm import LLM, RequestOutput
from pagefleet.engine.loading.checkpoint import Checkpoint, resolve
from pagefleet.engine.sampling.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pagefleet.engine.checking.oracle import Oracle

__all__ = ["NUM_TOKENS", "PROMPTS", "Comparison", "PromptResult", "compare"]

NUM_TOKENS: Final = 32
"""Greedy tokens of each prompt."""
PROMPTS: Final = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village by the sea, there lived a",
    "1, 1, 2, 3, 5, 8, 13,",
    "El cielo es azul y la hierba es",
    "水は何度で沸騰しますか。水は",
    "A",
    "The following is a list of the planets of the solar system, from the smallest to the largest, with the "
    "reasons why each has its size: Mercury, because it is close to the sun; Mars, because Jupiter took the "
    "material that it would have grown from; Venus and Earth, which are nearly the same; Neptune and Uranus,",
)
NEAR_TIE: Final = 1e-3
"""Two tokens whose logits differ by less may change places in float32."""
TOLERANCE: Final = 1e-2
"""The largest difference of a token's logprob that rounding explains."""


@dataclass(frozen=True, slots=True)
class PromptResult:
    """One prompt."""

    prompt: str
    num_prompt_tokens: int
    num_equal: int
    """Tokens before the first difference."""
    num_tokens: int
    margin: float | None
    """How far the token of transformers is ahead of the engine's at the first difference, in logits; None if
    there is no difference."""
    largest_difference: float
    """The largest difference of a logprob, over the equal tokens."""
    same_prompt_tokens: bool | None
    """Whether both tokenizers give the same ids; None if transformers cannot load the tokenizer."""

    @property
    def is_near_tie(self) -> bool:
        return self.margin is not None and self.margin < NEAR_TIE

    @property
    def passed(self) -> bool:
        equal = self.margin is None or self.is_near_tie
        return equal and self.largest_difference <= TOLERANCE and self.same_prompt_tokens is not False


@dataclass(frozen=True, slots=True)
class Comparison:
    """All prompts of a checkpoint."""

    model: str
    kind: str
    """"native", or "fallback" for a model that runs with the code of transformers."""
    results: tuple[PromptResult, ...]

    @property
    def passed(self) -> bool:
        return all(result.passed for result in self.results)


def compare(
    model: str, prompts: Sequence[str] = PROMPTS, report: Callable[[str], None] = print
) -> Comparison:
    """Compare greedy texts of `model` with transformers.

    The engine computes all prompts in one batch; then transformers computes each text at once. Only one of
    the two models is in memory at a time.

    Args:
        model: a folder, a GGUF file, a hub id or an alias.
        report: called with a sentence before each stage.

    Raises EngineError if the model cannot be loaded by either.
    """
    # Imports transformers.
    from pagefleet.engine.checking.oracle import Oracle

    checkpoint = resolve(model)
    report(f"loading {checkpoint.name} into the engine")
    kind, outputs = _generate(checkpoint, model, prompts)
    report("loading it into transformers")
    oracle = Oracle(checkpoint)
    results = []
    for number, (prompt, output) in enumerate(zip(prompts, outputs, strict=True), 1):
        report(f"comparing prompt {number} of {len(prompts)}")
        results.append(_compare(oracle, prompt, output))
    return Comparison(checkpoint.name, kind, tuple(results))


def _generate(checkpoint: Checkpoint, model: str, prompts: Sequence[str]) -> tuple[str, list[RequestOutput]]:
    from pagefleet.engine.models.registry import find_family

    llm = LLM(model, dtype="float32", num_blocks=512, num_speculative_tokens=0, max_num_batched_tokens=64)
    try:
        params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True, logprobs=0)
        outputs = llm.generate(list(prompts), params)
    finally:
        llm.close()
        gc.collect()
    if failed := [output for output in outputs if output.finish_reason == "error"]:
        raise EngineError(
            f"The engine could not complete a prompt of {len(failed[0].prompt_token_ids)} tokens."
        )
    return "fallback" if find_family(checkpoint.config) is None else "native", outputs


def _compare(oracle: Oracle, prompt: str, output: RequestOutput) -> PromptResult:
    token_ids = output.token_ids
    # Row i has the logits from which token i was chosen.
    rows = oracle.logits([*output.prompt_token_ids, *token_ids], len(token_ids) + 1)[:-1]
    best = rows.argmax(-1).tolist()
    differing = [at for at, pair in enumerate(zip(best, token_ids, strict=True)) if pair[0] != pair[1]]
    num_equal = min(differing, default=len(token_ids))
    margin = None
    if num_equal < len(token_ids):
        row = rows[num_equal]
        margin = float(row[best[num_equal]] - row[token_ids[num_equal]])
    expected = torch.log_softmax(rows, -1)[torch.arange(len(token_ids)), torch.tensor(token_ids)]
    actual = torch.tensor([each.logprob for each in output.logprobs])
    differences = (actual - expected).abs()[: num_equal + 1]
    own = oracle.encode(prompt)
    return PromptResult(
        prompt=prompt,
        num_prompt_tokens=len(output.prompt_token_ids),
        num_equal=num_equal,
        num_tokens=len(token_ids),
        margin=margin,
        largest_difference=float(differences.max()),
        same_prompt_tokens=None if own is None else own == list(output.prompt_token_ids),
    )
