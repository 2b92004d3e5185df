"""Who may use the gateway and how much: API keys, authentication, rate limits.

Does not know jobs, streams or the shape of OpenAI's answers.
"""
