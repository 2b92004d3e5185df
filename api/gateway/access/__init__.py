"""Access control: API keys, authentication, rate limits.

Does not know jobs, streams or the format of OpenAI's answers.
"""
