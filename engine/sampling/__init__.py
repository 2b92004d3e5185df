"""From logits to tokens: parameters, logit edits, the counter-based draw, log probabilities.

Does not know sequences, models or text.
"""
