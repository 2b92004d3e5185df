"""A mechanical check of the English in this repository: words and constructions that read as translated.

``python -m ops.language [PATH ...]`` prints each hit with its place and what to write instead; without a path
it checks everything. It finds the worst patterns only; CONTRIBUTING.md has the rules.
"""
