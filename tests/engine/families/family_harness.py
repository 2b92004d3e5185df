"""A tiny random checkpoint of a model family, what transformers makes of it, and what the engine makes of it.

`family_checks.py` has the checks, and the way to add a family.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pagefleet.engine import EngineConfig, EngineRequest, LLMEngine, SamplingParams
from pagefleet.engine.execution.executor import LoadedModel
from pagefleet.engine.loading.loader import load
from pagefleet.engine.outputs import FinishReason, SequenceOutput

NUM_TOKENS = 40
"""Output tokens of each text."""
VOCAB_SIZE = 260
"""The 256 bytes, and room for special tokens."""
BOS, EOS = 256, 257
BLOCK_SIZE = 4
NUM_BLOCKS = 512
NUM_SEEDS = 20

SIZES: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": None,
    # Values that are no class's default: code that reads another field, and takes its default, fails.
    "rope_theta": 5e3,
    "rms_norm_eps": 1e-2,
    "layer_norm_eps": 1e-2,
    "layer_norm_epsilon": 1e-2,
    "norm_epsilon": 1e-2,
}
"""Arguments of every config whose class has them; those of a family and of a variant replace them."""

STD = 0.3
"""Of weights: with these sizes, logits have a standard deviation of about 2."""
MIN_LEAD = 3e-4
"""By how much the best logit must lead in every greedy text, in standard deviations of the logits: more than
two logits within TOLERANCE can move."""
MIN_DISTINCT = 6
"""The smallest number of different tokens in a greedy text: a text that repeats one token shows little."""
TOLERANCE = 1e-4
"""The largest difference of a logit from transformers', and in standard deviations of the logits if that is
less."""

DIFFERS = "differs"
"""A neighbour's code loads the checkpoint, but the tokens or logits are different."""


@dataclass(frozen=True)
class Variant:
    """One configuration of a family that is tested."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the family's config class in transformers."""
    neighbours: Mapping[str, str] = field(default_factory=dict)
    """For each family whose code must fail with this checkpoint, by its prefix in transformers' names: a
    regular expression that the refusal matches, or DIFFERS."""
    prompt_lengths: Sequence[int] = (60, 1, 17)
    max_model_len: int | None = None
    """Of the engine. transformers changes the frequencies of dynamic and longrope RoPE when a text exceeds
    the original context. The engine chooses them once, from this length. Set it and `prompt_lengths` so that
    all texts are on its side of the boundary. transformers computes a text of this length first: its dynamic
    RoPE keeps these frequencies for all texts beyond the original context."""
    marks: Collection[pytest.MarkDecorator] = ()


class Family:
    """What a family's tests give; `FamilyChecks` is the class to derive from."""

    prefix: str
    """Of the family's names in transformers: "Llama" for LlamaConfig and LlamaForCausalLM."""
    options: Mapping[str, Any] = {}
    """Arguments of the config class in all variants."""
    variants: Mapping[str, Variant]
    embedding_std: float = STD
    """Smaller, such as 0.02, for families that scale embeddings (Gemma): a tied head would repeat tokens."""

    @classmethod
    def make_config(cls, transformers: Any, options: Mapping[str, Any]) -> Any:
        """Return transformers' config with SIZES and `options`. To be replaced if the config is nested."""
        return make_config(getattr(transformers, f"{cls.prefix}Config"), options)


def make_config(config_class: Any, options: Mapping[str, Any]) -> Any:
    """Return a config with `options`, and with those of SIZES that the class has.

    An option that the class does not have is a mistake: transformers would store it and ignore it.
    """
    known = {*config_class.__dataclass_fields__, *config_class.attribute_map}
    if "rope_parameters" in known:
        # Of every class with RoPE, also if it does not declare them.
        known |= {"rope_theta", "head_dim"}
    assert set(options) <= known, f"{config_class.__name__} has no {sorted(set(options) - known)}"
    sizes = {name: value for name, value in SIZES.items() if name in known}
    return config_class(**sizes | dict(options))


def make_model(transformers: Any, config: Any, seed: int, embedding_std: float = STD) -> Any:
    """Return transformers' float32 model with random weights.

    Freshly made, norms are all 1 and biases, sinks and router biases all 0, and a decoder that left them out
    would pass: a random number is added to each element of these.
    """
    # The other implementations of experts cannot compute in float64.
    config._experts_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator) * STD
            is_constant = tensor.ndim == 1 or bool((tensor == tensor.flatten()[0]).all())
            tensor.copy_(tensor + noise if is_constant else noise)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(embedding_std / STD)
    # The texts have a fixed length.
    model.generation_config.eos_token_id = None
    return model


def make_checkpoint(transformers: Any, config: Any, folder: Path, seed: int = 0) -> Any:
    """Save a tiny random checkpoint with a tokenizer of bytes; return its float32 model."""
    model = make_model(transformers, config, seed)
    save(model, folder)
    return model


def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    """Of all parameters; tied ones count once."""
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def save(model: Any, folder: Path) -> None:
    model.generation_config.eos_token_id = EOS
    model.save_pretrained(folder)
    model.generation_config.eos_token_id = None
    byte_tokenizer().save(str(folder / "tokenizer.json"))


@cache
def byte_tokenizer() -> Tokenizer:
    """A token for each byte, then `<s>` and `</s>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


@dataclass(frozen=True)
class Text:
    """A prompt, its continuation, and transformers' logits of all tokens but the last."""

    prompt: list[int]
    tokens: list[int]
    logits: torch.Tensor

    @property
    def lead(self) -> float:
        """By how much the best logit leads over the second, where its lead is smallest, in standard
        deviations."""
        best = self.logits[len(self.prompt) - 1 :].topk(2).values
        return float((best[:, 0] - best[:, 1]).min() / self.logits.std())

    @property
    def tolerance(self) -> float:
        return TOLERANCE * min(1.0, float(self.logits.std()))


class Oracle:
    """transformers: the greedy texts of some prompts."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        self.model = model
        # In float64, transformers makes NaN of padding: of a row of its masks that is -inf throughout.
        num = 1 if model.dtype == torch.float64 else max(1, len(prompts))
        batches = [prompts[start : start + num] for start in range(0, len(prompts), num)]
        outputs = [tokens for batch in batches for tokens in self._generate(batch)]
        self.texts = [
            Text(list(prompt), tokens, self.logits([*prompt, *tokens[:-1]]))
            for prompt, tokens in zip(prompts, outputs, strict=True)
        ]

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[EOS] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        output = self.model.generate(
            ids, attention_mask=mask, max_new_tokens=NUM_TOKENS, do_sample=False, pad_token_id=EOS
        )
        return output[:, longest:].tolist()

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> torch.Tensor:
        """Return the logits of all `tokens`, computed in one pass, [len(tokens), vocab]."""
        return self.model(torch.tensor([tokens]), use_cache=False).logits[0]

    @property
    def is_clear(self) -> bool:
        """Whether the texts can be compared: the best token always leads clearly, and tokens vary."""
        if any(text.lead < MIN_LEAD or len(set(text.tokens)) < MIN_DISTINCT for text in self.texts):
            return False
        for text in self.texts:
            best = text.logits[len(text.prompt) - 1 :].argmax(-1).tolist()
            assert text.tokens == best, "a text crosses a boundary: see Variant.max_model_len"
        return True


@dataclass
class Answer:
    """What the engine returned for one request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[torch.Tensor] = field(default_factory=list)
    """Of all tokens of the vocabulary, one tensor for each position, if the request asks for them."""
    num_cached_tokens: int = 0

    def add(self, output: SequenceOutput) -> None:
        assert output.finish_reason is not FinishReason.ERROR, output.stop_reason
        self.token_ids += output.token_ids
        self.num_cached_tokens = output.num_cached_tokens
        for each in (*output.prompt_logprobs, *output.logprobs):
            row = torch.full((len(each.top),), torch.nan, dtype=torch.float64)
            ids, values = zip(*each.top, strict=True) if each.top else ((), ())
            row[list(ids)] = torch.tensor(values, dtype=torch.float64)
            self.logprobs.append(row)


class Case:
    """One variant: its checkpoint, its oracle, and engines that have loaded it."""

    def __init__(self, transformers: Any, family: type[Family], variant: Variant, folder: Path) -> None:
        self.transformers = transformers
        self.family = family
        self.variant = variant
        self.folder = folder
        self._loaded: dict[tuple[str, str], LoadedModel] = {}
        self.oracle = self._make_oracle()
        self._check_options()
        save(self.oracle.model, folder)

    @property
    def texts(self) -> list[Text]:
        return self.oracle.texts

    def config(self, variant: Variant) -> Any:
        return self.family.make_config(self.transformers, {**self.family.options, **variant.options})

    def _make_oracle(self) -> Oracle:
        """Return the oracle of the first seed whose greedy texts are clear."""
        prompts = [
            torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(length)).tolist()
            for length in self.variant.prompt_lengths
        ]
        for seed in range(NUM_SEEDS):
            model = make_model(self.transformers, self.config(self.variant), seed, self.family.embedding_std)
            if self.variant.max_model_len is not None:
                Oracle(model, []).logits([0] * self.variant.max_model_len)
            oracle = Oracle(model, prompts)
            if oracle.is_clear:
                return oracle
        raise AssertionError(f"none of {NUM_SEEDS} seeds gives clear texts: change the sizes")

    def _check_options(self) -> None:
        """Assert that the weights give other logits with the options of the family's first variant.

        Otherwise code that ignores the options of this variant would pass.
        """
        first = next(iter(self.family.variants.values()))
        model = make_model(self.transformers, self.config(first), seed=0)
        if first is self.variant or shapes(model) != shapes(self.oracle.model):
            return
        model.load_state_dict(self.oracle.model.state_dict())
        text = self.texts[0]
        others = Oracle(model, []).logits([*text.prompt, *text.tokens[:-1]])
        assert float((others - text.logits).abs().max()) > 100 * text.tolerance, (
            "the variant's options do nothing"
        )

    @cached_property
    def oracle_float64(self) -> Oracle:
        model = copy.deepcopy(self.oracle.model).double()
        oracle = Oracle(model, [text.prompt for text in self.texts])
        assert oracle.is_clear
        return oracle

    def engine(
        self,
        dtype: str = "float32",
        *,
        num_blocks: int = NUM_BLOCKS,
        folder: Path | None = None,
        backend: str = "reference",
        **options: Any,
    ) -> LLMEngine:
        """Return a new engine without speculation and with empty books.

        The model is loaded once for each dtype and backend, by the loader that workers use.

        Args:
            folder: of another checkpoint. It is loaded each time.
            options: fields of EngineConfig.
        """
        fields = {"num_speculative_tokens": 0, "max_num_batched_tokens": 512, **options}
        if folder is not None:
            loaded = self._load(folder, dtype, backend)
        else:
            found = self._loaded.get((dtype, backend))
            loaded = self._loaded[dtype, backend] = found or self._load(self.folder, dtype, backend)
        info = replace(loaded.info, num_blocks=num_blocks)
        return LLMEngine(replace(loaded, info=info), EngineConfig(model=str(self.folder), **fields))

    def _load(self, folder: Path, dtype: str, backend: str) -> LoadedModel:
        config = EngineConfig(
            model=str(folder), dtype=dtype, backend=backend, block_size=BLOCK_SIZE, num_blocks=NUM_BLOCKS,
            num_threads=1, max_model_len=self.variant.max_model_len,
        )  # fmt: skip
        return load(config)

    def checkpoint_of(self, neighbour: str, folder: Path) -> Path:
        """Copy the checkpoint to `folder`, as one of another family: its config.json names that family's
        architecture, so that the family's code loads it."""
        shutil.copytree(self.folder, folder)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["model_type"] = getattr(self.transformers, f"{neighbour}Config").model_type
        names = self.transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        config["architectures"] = [names[config["model_type"]]]
        path.write_text(json.dumps(config), encoding="utf-8")
        return folder


def run(engine: LLMEngine, requests: Iterable[EngineRequest]) -> dict[str, Answer]:
    """Add all requests, step until they are done, and return the answer to each by its id."""
    answers: dict[str, Answer] = {}
    for request in requests:
        engine.add_request(request)
        answers[request.request_id] = Answer()
    while engine.has_unfinished_requests:
        for output in engine.step():
            answers[output.request_id].add(output)
        engine.check_integrity()
    return answers


def greedy(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": NUM_TOKENS, "temperature": 0.0, "ignore_eos": True} | fields)


def sampled(seed: int = 7, **fields: Any) -> SamplingParams:
    return greedy(temperature=1.0, seed=seed, **fields)


def with_all_logprobs(params: SamplingParams) -> SamplingParams:
    """Ask for the logprobs of the whole vocabulary at every position of prompt and output.

    That is more than a user may ask for, so the check is bypassed.
    """
    for name in ("logprobs", "prompt_logprobs"):
        object.__setattr__(params, name, VOCAB_SIZE)
    return params


def requests_of(texts: Sequence[Text], params: SamplingParams) -> Iterator[EngineRequest]:
    for index, text in enumerate(texts):
        yield EngineRequest(str(index), text.prompt, params)
