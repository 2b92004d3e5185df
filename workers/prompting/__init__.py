"""Everything that needs the model's tokenizer: requests to token ids, model cards, tokenizer questions.

Does not know the scheduler and does not change the state of a job.
"""
