"""The Celery app of another team, which does not import pagefleet. ``FOREIGN_URL`` is its Redis.

To start a worker: ``celery --app foreign_app worker --pool solo``.
"""

from __future__ import annotations

import os

from celery import Celery

app = Celery(
    "foreign_app", broker=os.environ.get("FOREIGN_URL"), backend=os.environ.get("FOREIGN_URL"),
    broker_connection_retry_on_startup=True,
)  # fmt: skip


@app.task
def upper(text):
    return text.upper()


@app.task
def fields(prompt):
    return {"prompt": prompt, "max_tokens": 3}


@app.task
def number():
    return 7


@app.task
def text_of(result):
    """The text of a generate job."""
    return result["choices"][0]["text"]


@app.task
def count_texts(results):
    return sum(len(result["choices"][0]["text"]) > 0 for result in results)


@app.task
def note_error(task_id):
    """An errback: an old-style one is called with the id of the failed task."""
    return f"failed: {task_id}"
