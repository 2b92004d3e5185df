"""``litellm``, which has an environment of its own (``make litellm``): it needs older packages than ours."""

from __future__ import annotations

import json
import os
import sys

# It would fetch a list of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from openai_sync import Point


def run(url, hi):
    asked = {"base_url": url, "api_key": "none", "messages": hi, "max_tokens": 16, "seed": 7}
    asked |= {"model": "openai/null", "num_retries": 0}
    answer = litellm.completion(**asked)
    usage = {"include_usage": True}
    chunks = list(litellm.completion(**asked, stream=True, stream_options=usage))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    parsed = litellm.completion(**{**asked, "max_tokens": 120}, response_format=Point)
    try:
        litellm.completion(**{**asked, "model": "openai/nobody"})
    except litellm.NotFoundError as error:
        refused = [error.status_code, str(error)]
    return {
        "answer": [answer.choices[0].message.content, answer.usage.total_tokens],
        "stream": [[piece for piece in pieces if piece], chunks[-1].usage.total_tokens],
        "parsed": Point.model_validate_json(parsed.choices[0].message.content).model_dump(),
        "refused": refused,
    }


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], json.loads(sys.argv[2]))))
