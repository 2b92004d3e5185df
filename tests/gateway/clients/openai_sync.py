"""The ``openai`` package. Each program here prints what it was given, by ability: see test_clients.py."""

from __future__ import annotations

import json
import sys
from typing import Literal

import openai
from pydantic import BaseModel


class Point(BaseModel):
    x: int
    colour: Literal["red", "blue"]


def run(url, hi):
    ai = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    asked = {"model": "null", "messages": hi, "max_tokens": 16, "seed": 7}
    answer = ai.chat.completions.create(**asked)
    usage = {"include_usage": True}
    chunks = list(ai.chat.completions.create(**asked, stream=True, stream_options=usage))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    parsed = ai.chat.completions.parse(**{**asked, "max_tokens": 120}, response_format=Point)
    try:
        ai.chat.completions.create(**{**asked, "model": "nobody"})
    except openai.NotFoundError as error:
        refused = [error.status_code, str(error)]
    return {
        "answer": [answer.choices[0].message.content, answer.usage.total_tokens],
        "stream": [[piece for piece in pieces if piece], chunks[-1].usage.total_tokens],
        "parsed": parsed.choices[0].message.parsed.model_dump(),
        "refused": refused,
    }


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], json.loads(sys.argv[2]))))
