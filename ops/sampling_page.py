"""``python -m ops.sampling_page``: writes docs/sampling.md from the pydantic model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args

from annotated_types import Ge, Gt, Le, MaxLen
from pydantic.fields import FieldInfo

from pagefleet.api.contract.errors import InvalidRequest
from pagefleet.api.contract.messages import GenerateRequest
from pagefleet.api.contract.requests import build_request
from pagefleet.api.contract.sampling import SamplingParams

PAGE: Final = Path(__file__).parents[1] / "docs" / "sampling.md"
_HEAD: Final = """\
# Sampling parameters

Written by `python -m ops.sampling_page` from `api/contract/sampling.py`; change it there.

Keyword arguments of `generate()` and `chat()`; `engine.SamplingParams` has the same. They work in vLLM's
order: `allowed_token_ids`, `bad_words`, `min_tokens`, `logit_bias`, repetition, frequency and presence
penalty, as defined in `engine/sampling/logits_processor.py`; then temperature, `min_p`, `top_k`, `top_p`,
`typical_p` and one uniform number for each (seed, choice, position), as in `engine/sampling/token_draw.py`.
No draw depends on what else is in the batch, and a job that is taken over goes on with the same draws.

## The same request again

The draws are the same. The logits are the same up to rounding: a kernel that computes another number of
tokens adds in another order, and two tokens that are closer than that may change places. That decides greedy
requests too. Four things change how many tokens a step computes:

- **The prefix cache**: the second request computes only what the first one did not leave.
  `prefix_cache=False` computes the whole prompt, and keeps nothing of it for others.
- **Guesses**: a step computes several tokens of one answer. `speculate=False`, or a worker with
  `--speculate 0`, computes one.
- **Other jobs**: a step computes their tokens too. A worker with `--max-num-seqs 1` computes one job.
- **A prompt in several steps**: their sizes follow the measured time. A prompt that fits one step is not cut.

What follows, for the same request with the same seed:

- `float64`: the same tokens, whatever of these four is different. Compared in every test run.
- `float32`: nearly always the same tokens.
- `bfloat16`, `float16`: the tokens often differ after some time. With all four removed, on the same machine
  and version, each step has the same shape and the tokens are the same.

Where a request leaves `max_tokens`, `temperature`, `top_k`, `top_p`, `min_p` or `repetition_penalty` out,
what the checkpoint's generation_config.json says (`max_new_tokens` for `max_tokens`) stands instead of the
default below, unless the worker runs with `PAGEFLEET_USE_GENERATION_CONFIG=false`. It is filled in at submit
and kept with the job.

A wrong value raises `InvalidRequest` before anything is enqueued, `param` names the parameter, and the
message is one sentence: the last column has an example. A name that doesn't exist raises `UnknownParameter`
with the nearest one. Token ids outside of the model's vocabulary, and a `max_tokens` beyond its context, are
`InvalidRequest` too.
"""


def page() -> str:
    """The whole page, as Markdown."""
    request = {name: field for name, field in GenerateRequest.model_fields.items() if field.description}
    tables = [*_table(SamplingParams.model_fields), "\n## Of the request\n", *_table(request)]
    return "\n".join([_HEAD, *tables, ""])


def _table(fields: Mapping[str, FieldInfo]) -> list[str]:
    rows = ["| parameter | meaning | range | default | error |", "|---|---|---|---|---|"]
    for name, field in fields.items():
        cells = (f"`{name}`", _meaning(name, field), _range(field), _default(field), _error(name, field))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return rows


def _meaning(name: str, field: FieldInfo) -> str:
    if not field.description:
        raise ValueError(f"the parameter {name} has no description")
    return field.description[0].upper() + field.description[1:].rstrip(".") + "."


def _range(field: FieldInfo) -> str:
    """The type and its bounds."""
    least = next((f"> {bound.gt}" for bound in field.metadata if isinstance(bound, Gt)), None)
    least = least or next((f">= {bound.ge}" for bound in field.metadata if isinstance(bound, Ge)), None)
    most = next((f"<= {_short(bound.le)}" for bound in field.metadata if isinstance(bound, Le)), None)
    count = next(
        (f"at most {bound.max_length:,}" for bound in field.metadata if isinstance(bound, MaxLen)), None
    )
    return ", ".join(each for each in (_kind(field), least, most, count) if each)


def _short(bound: Any) -> str:
    named = {2**64 - 1: "2^64 - 1", 2**31 - 1: "2^31 - 1"}
    return named.get(bound, f"{bound:,}")


def _kind(field: FieldInfo) -> str:
    text = str(field.annotation)
    if "dict" in text:
        return "token ids to numbers"
    if "list" in text:
        return "strings" if "str" in text else "token ids"
    kinds = {bool: "true or false", int: "integer", float: "number", str: "string"}
    return next(kinds[kind] for kind in (field.annotation, *get_args(field.annotation)) if kind in kinds)


def _default(field: FieldInfo) -> str:
    value: Any = field.get_default(call_default_factory=True)
    return "none" if value in (None, [], {}) else f"`{value}`".lower()


def _error(name: str, field: FieldInfo) -> str:
    """What a value just outside of the range is told."""
    try:
        build_request({"model": "m", "prompt": "x", name: _wrong_value(field)})
    except InvalidRequest as error:
        return error.message
    raise ValueError(f"the parameter {name} takes anything")


def _wrong_value(field: FieldInfo) -> Any:
    kind = _kind(field)
    if kind == "token ids to numbers":
        return {5: 101.0}
    if kind in ("strings", "token ids"):
        return [""] if kind == "strings" else [-1]
    if kind in ("true or false", "string"):
        return "yes" if kind == "true or false" else ""
    for bound in field.metadata:
        if isinstance(bound, Gt | Ge):
            return bound.gt if isinstance(bound, Gt) else bound.ge - 1
    raise ValueError(field)


if __name__ == "__main__":
    PAGE.write_text(page())
