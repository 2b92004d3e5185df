"""Compares a checkpoint's results with those of transformers, and lists the architectures that run.

Does not know the queue or the command line.
"""
