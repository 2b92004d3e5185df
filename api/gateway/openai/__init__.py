"""The OpenAI endpoints: chat completions, completions, models, tokenize, and their OpenAPI document.

Does not know the job endpoints.
"""
