"""Compares a checkpoint's results with those of transformers, for `pagefleet models check`.

Does not know the queue or the command line.
"""
