"""``langchain-openai``: ChatOpenAI."""

from __future__ import annotations

import json
import sys

import openai
from langchain_openai import ChatOpenAI
from openai_sync import Point


def run(url, hi):
    asked = {"base_url": url, "api_key": "none", "max_retries": 0, "seed": 7}
    ai = ChatOpenAI(model="null", max_tokens=16, stream_usage=True, **asked)
    answer = ai.invoke(hi)
    chunks = list(ai.stream(hi))
    used = [chunk.usage_metadata["total_tokens"] for chunk in chunks if chunk.usage_metadata]
    shaped = ChatOpenAI(model="null", max_tokens=120, **asked)
    parsed = shaped.with_structured_output(Point, method="json_schema").invoke(hi)
    try:
        ChatOpenAI(model="nobody", **asked).invoke(hi)
    except openai.NotFoundError as error:
        refused = [error.status_code, str(error)]
    return {
        "answer": [answer.content, answer.usage_metadata["total_tokens"]],
        "stream": [[chunk.content for chunk in chunks if chunk.content], *used],
        "parsed": parsed.model_dump(),
        "refused": refused,
    }


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], json.loads(sys.argv[2]))))
