"""From a request to token ids: prompts, chat templates, model cards, tokenizer questions.

Does not know the scheduler or the job store's state changes.
"""
