"""The engine with the real SmolLM2 in it: token for token what transformers generates, however it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from pagefleet.engine import LLM, EngineRequest, InvalidRequestError, LLMEngine, SamplingParams
from pagefleet.engine.execution.executor import LoadedModel
from pagefleet.engine.outputs import FinishReason

NEAR_TIE = 1e-3
PREAMBLE = (
    "You are reading a small collection of beginnings. Each of them is to be continued in plain words, "
    "carefully, one sentence after the other, until the thought is complete. Here is one of them: "
)
BEGINNINGS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "2, 4, 6, 8,",
    "Dear Sir or Madam,",
    "The three laws of thermodynamics are",
    "In 1969, for the first time,",
]

Compare = Callable[[list[list[int]]], None]


class Reference:
    """What transformers says about `num` beginnings, without and with the preamble, in one dtype."""

    def __init__(self, transformers: Any, folder: Path, dtype: str, num: int, num_tokens: int) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
        texts = BEGINNINGS[:num] + [PREAMBLE + beginning for beginning in BEGINNINGS[:num]]
        self.num_tokens = num_tokens
        self.prompts = [tokenizer(text)["input_ids"] for text in texts]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        # Left to itself, it would end at the end-of-sequence token.
        self.model.generation_config.eos_token_id = None
        with torch.inference_mode():
            output = self.model.generate(**batch, max_new_tokens=num_tokens, do_sample=False)
        self.token_ids = output[:, batch["input_ids"].shape[1] :].tolist()

    def requests(self) -> list[EngineRequest]:
        greedy = SamplingParams(max_tokens=self.num_tokens, temperature=0.0, ignore_eos=True)
        return [EngineRequest(str(index), prompt, greedy) for index, prompt in enumerate(self.prompts)]

    @torch.inference_mode()
    def gap(self, index: int, position: int) -> float:
        """By how much the best logit leads over the second, where output token `position` is chosen."""
        tokens = self.prompts[index] + self.token_ids[index][:position]
        first, second = self.model(torch.tensor([tokens])).logits[0, -1].topk(2).values.tolist()
        return first - second


@pytest.fixture(scope="module", params=[(3, 24), pytest.param((8, 64), marks=pytest.mark.slow)], ids=str)
def reference(request: pytest.FixtureRequest, transformers: Any, smollm2_folder: Path) -> Reference:
    return Reference(transformers, smollm2_folder, "float32", *request.param)


@pytest.fixture
def assert_equal(reference: Reference, record_property: Callable[[str, object], None]) -> Compare:
    """Equal to the reference; a near tie that fell the other way is reported as the test's property."""

    def compare(outputs: list[list[int]]) -> None:
        for index, (actual, expected) in enumerate(zip(outputs, reference.token_ids, strict=True)):
            assert len(actual) == reference.num_tokens
            if actual != expected:
                position = next(i for i in range(reference.num_tokens) if actual[i] != expected[i])
                gap = reference.gap(index, position)
                assert gap < NEAR_TIE, f"prompt {index} differs at {position}, where the lead is {gap}"
                record_property("near_tie", f"prompt {index}, token {position}, lead {gap:.2e}")

    return compare


def run(engine: LLMEngine, requests: Iterable[EngineRequest]) -> dict[str, list[int]]:
    """Adds all requests, steps until they are done, and returns the tokens of each by its id."""
    tokens: dict[str, list[int]] = {}
    for request in requests:
        engine.add_request(request)
        tokens[request.request_id] = []
    while engine.has_unfinished_requests:
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
    engine.check_integrity()
    return tokens


def test_alone_each_prompt_goes_on_as_in_transformers(engine_with, smollm2_float32, reference, assert_equal):
    engine = engine_with(smollm2_float32, enable_prefix_caching=False)
    outputs = [run(engine, [request]) for request in reference.requests()]
    assert_equal([tokens for output in outputs for tokens in output.values()])


def test_in_one_batch(engine_with, smollm2_float32, reference, assert_equal):
    engine = engine_with(smollm2_float32, max_num_batched_tokens=2048, enable_prefix_caching=False)
    outputs = run(engine, reference.requests())
    assert_equal(list(outputs.values()))
    assert engine.stats().num_steps == reference.num_tokens, "they ran as one batch, prompts and all"


def test_with_prompts_cut_into_chunks(engine_with, smollm2_float32, reference, assert_equal):
    engine = engine_with(
        smollm2_float32, max_num_batched_tokens=64, enable_prefix_caching=False, num_speculative_tokens=0
    )
    outputs = run(engine, reference.requests())
    assert_equal(list(outputs.values()))
    assert engine.stats().num_steps > reference.num_tokens + sum(map(len, reference.prompts)) // 64 - 2


def test_with_hits_in_the_prefix_cache(engine_with, smollm2_float32, reference, assert_equal):
    """Given an engine that has seen every prompt before, the same prompts find their blocks."""
    engine = engine_with(smollm2_float32)
    one_token = SamplingParams(max_tokens=1, temperature=0.0)
    run(engine, [EngineRequest(str(i), prompt, one_token) for i, prompt in enumerate(reference.prompts)])
    hits = engine.stats().prefix_cache_hits
    outputs = run(engine, reference.requests())
    assert_equal(list(outputs.values()))
    # Nearly all of a prompt is found: whole blocks, but never its last token.
    block_size = engine.info.block_size
    expected = sum((len(prompt) - 1) // block_size * block_size for prompt in reference.prompts)
    assert engine.stats().prefix_cache_hits - hits == expected >= 32 * len(reference.prompts) // 2


def test_after_preemption(engine_with, smollm2_float32, reference, assert_equal):
    """Given blocks for about half of the batch, sequences lose theirs and are computed again."""
    block_size = smollm2_float32.info.block_size
    needed = sum(-(-(len(prompt) + reference.num_tokens) // block_size) for prompt in reference.prompts)
    engine = engine_with(
        smollm2_float32, num_blocks=needed // 2, enable_prefix_caching=False, num_speculative_tokens=0
    )
    outputs = run(engine, reference.requests())
    # Half of the few prompts of `make test` is one or two sequences.
    assert engine.stats().num_preemptions > (1 if len(reference.prompts) > 6 else 0)
    assert_equal(list(outputs.values()))


@pytest.mark.parametrize(("num", "num_tokens"), [(1, 16), pytest.param(2, 24, marks=pytest.mark.slow)])
def test_in_float64_not_even_a_near_tie_falls_the_other_way(
    engine_with, smollm2_float64, smollm2_folder, transformers, num, num_tokens
):
    reference = Reference(transformers, smollm2_folder, "float64", num, num_tokens)
    engine = engine_with(smollm2_float64, max_num_batched_tokens=40)
    assert list(run(engine, reference.requests()).values()) == reference.token_ids


def test_sampling_goes_on_identically_from_any_token_in_any_company(engine_with, smollm2_float64):
    """Given one sampled text, restarts from each of its prefixes, among strangers, all end as it did."""
    tokenizer = smollm2_float64.tokenizer
    prompt = tokenizer.encode(PREAMBLE + BEGINNINGS[1])
    params = SamplingParams(max_tokens=10, temperature=0.9, top_p=0.95, seed=1234, ignore_eos=True)
    alone = engine_with(smollm2_float64)
    whole = run(alone, [EngineRequest("whole", prompt, params)])["whole"]
    assert len(set(whole)) > 5
    others = [
        EngineRequest(
            f"other {seed}", prompt[seed:], SamplingParams(max_tokens=9, temperature=1.2, seed=seed)
        )
        for seed in range(3)
    ]
    restarts = [EngineRequest(str(cut), prompt, params, logs=[whole[:cut]]) for cut in range(len(whole))]
    crowd = engine_with(smollm2_float64, max_num_batched_tokens=100)
    outputs = run(crowd, [*others, *restarts])
    assert {cut: whole[:cut] + outputs[str(cut)] for cut in range(len(whole))} == dict.fromkeys(
        range(len(whole)), whole
    )
    other_seed = SamplingParams(max_tokens=10, temperature=0.9, top_p=0.95, seed=1235, ignore_eos=True)
    assert run(alone, [EngineRequest("other", prompt, other_seed)])["other"] != whole


# -- LLM ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(model="smollm2-135m-instruct", num_blocks=256, max_num_batched_tokens=128)


def test_texts_and_token_ids_alone_and_in_lists(llm):
    """Given the four shapes of prompts, each is answered, in order."""
    greedy = SamplingParams(max_tokens=8, temperature=0.0)
    [alone] = llm.generate("The capital of France is", greedy)
    assert alone.text.startswith(" Paris")
    assert alone.finish_reason is FinishReason.LENGTH
    assert len(alone.token_ids) == 8
    assert llm.engine.tokenizer.decode(alone.token_ids) == alone.text
    [by_ids] = llm.generate(list(alone.prompt_token_ids), greedy)
    assert (by_ids.prompt_token_ids, by_ids.text) == (alone.prompt_token_ids, alone.text)
    longer = SamplingParams(max_tokens=12, temperature=0.0)
    texts = llm.generate(["The capital of France is", "1, 2, 3, 4,"], [greedy, longer])
    assert [len(output.token_ids) for output in texts] == [8, 12]
    assert " 5" in texts[1].text
    ids = llm.generate([list(output.prompt_token_ids) for output in texts], [greedy, longer])
    assert [output.text for output in ids] == [output.text for output in texts]
    assert llm.generate([], greedy) == []


def test_a_conversation_ends_at_the_end_of_its_turn(llm):
    question = [{"role": "user", "content": "Answer with one word: what is the capital of France?"}]
    greedy = SamplingParams(max_tokens=64, temperature=0.0)
    [single] = llm.chat(question, greedy)
    assert "Paris" in single.text
    assert single.finish_reason is FinishReason.STOP
    assert "<|im_end|>" not in single.text
    first, second = llm.chat([question, question], greedy)
    assert first.text == second.text


def test_unseeded_requests_differ_and_seeded_ones_do_not(llm):
    free = SamplingParams(max_tokens=16, temperature=1.5)
    assert len({output.text for output in llm.generate(["Once"] * 4, free)}) > 1
    seeded = SamplingParams(max_tokens=16, temperature=1.5, seed=3)
    assert len({output.token_ids for output in llm.generate(["Once"] * 2, seeded)}) == 1


def test_one_bad_prompt_leaves_nobody_in_the_engine(llm):
    with pytest.raises(InvalidRequestError, match="10000000") as raised:
        llm.generate([[1, 2, 3], [10**7]], SamplingParams(max_tokens=4))
    assert raised.value.code == "token_out_of_vocabulary"
    assert not llm.engine.has_unfinished_requests
    with pytest.raises(ValueError, match="sampling_params has 1 entries for 2 prompts"):
        llm.generate(["a", "b"], [SamplingParams()])


def test_loading_reports_its_stages_and_warms_up(smollm2_folder):
    from pagefleet.engine import EngineConfig
    from pagefleet.engine.loading.loader import load

    stages: dict[str, float] = {}
    config = EngineConfig(model=str(smollm2_folder), kv_memory_bytes=50_000_000, max_model_len=100)
    loaded = load(config, stages.__setitem__)
    assert list(stages) == [
        "import",
        "resolve",
        "tokenizer",
        "weights",
        "fingerprint",
        "warm_up",
        "kv_cache",
    ]
    info = loaded.info
    # 2 (keys, values) x 30 layers x 3 heads x 64 x 16 tokens x 2 bytes
    assert info.num_blocks == 50_000_000 // 368_640
    assert (info.max_model_len, info.vocab_size, info.eos_token_ids) == (100, 49152, (2,))
    assert info.fingerprint.dtype == "bfloat16"


def test_a_device_that_is_not_there_is_a_configuration_error():
    from pagefleet.engine.errors import ConfigError

    for device in ("cuda:99", "nonsense"):
        with pytest.raises(ConfigError, match=device):
            LLM(model="smollm2-135m-instruct", device=device)


def test_memory_for_less_than_a_block_is_refused(smollm2_folder):
    from pagefleet.engine.errors import ModelLoadError

    with pytest.raises(ModelLoadError, match="kv_memory_bytes"):
        LLM(model=str(smollm2_folder), kv_memory_bytes=1000)


def test_a_run_of_steps_without_a_sample_is_fine(engine_with, smollm2_float32: LoadedModel):
    """Given a prompt of three chunks, two steps give nothing and the third gives the first token."""
    engine = engine_with(smollm2_float32, max_num_batched_tokens=16)
    engine.add_request(EngineRequest("a", range(100, 148), SamplingParams(max_tokens=2, temperature=0.0)))
    assert [len(engine.step()) for _ in range(4)] == [0, 0, 1, 1]
