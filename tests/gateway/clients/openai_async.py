"""The ``openai`` package on asyncio."""

from __future__ import annotations

import asyncio
import json
import sys

import openai
from openai_sync import Point


async def run(url, hi):
    ai = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    asked = {"model": "null", "messages": hi, "max_tokens": 16, "seed": 7}
    answer = await ai.chat.completions.create(**asked)
    usage = {"include_usage": True}
    stream = await ai.chat.completions.create(**asked, stream=True, stream_options=usage)
    chunks = [chunk async for chunk in stream]
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    parsed = await ai.chat.completions.parse(**{**asked, "max_tokens": 120}, response_format=Point)
    try:
        await ai.chat.completions.create(**{**asked, "model": "nobody"})
    except openai.NotFoundError as error:
        refused = [error.status_code, str(error)]
    return {
        "answer": [answer.choices[0].message.content, answer.usage.total_tokens],
        "stream": [[piece for piece in pieces if piece], chunks[-1].usage.total_tokens],
        "parsed": parsed.choices[0].message.parsed.model_dump(),
        "refused": refused,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(sys.argv[1], json.loads(sys.argv[2])))))
