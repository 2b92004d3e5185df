"""Conversations with tools and reasoning: what a request asks for, and how models write their answers.

It turns requests into the fields of jobs, conversations into the input of chat templates, and the texts of
answers into messages. It does not know Redis, HTTP, tokenizers or the engine.
"""
