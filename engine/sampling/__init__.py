"""Sampling: from a step's logits to one token id for each row. Does not know sequences, models or text.

The path of a token, in the order of the calls:

1. sampling_params.py: `SamplingParams`, what a request asks for, with its fields checked.
2. logit_rules.py: `LogitRules`, what those parameters and the sequence's tokens do to its logits: penalties,
   biases, allowed and forbidden tokens. No tensors, so the scheduler's side can hold it.
3. sampling_batch.py: `SamplingBatch`, the parameters of a step's rows as columns; `GrammarMasks`, the tokens
   that grammars allow, for the rows that have a grammar.
4. sampler.py: `Sampler`, the interface that a backend may implement: from the logits and the batch to the
   token ids. reference_sampler.py: `ReferenceSampler`, for every device. It calls:
5. logits_processor.py: `process_logits` applies the grammar's masks and the rules to the logits.
6. top_tokens.py: `row_max` is the greedy choice; `RankedRows` and `keep_top_mass` rank only
   the part of the vocabulary that is needed.
7. token_draw.py: `TokenDraw` applies temperature, min_p, top_k, top_p and typical_p, and draws; row_kinds.py:
   which rows it draws together; prefixes.py: which candidates a filter keeps.
8. philox.py: the uniform number of a draw, a function of (seed, choice, position).
9. row_sums.py: float64 sums of weights, and the inverse CDF that turns the uniform number into a token.

arrays.py has what tensors and numpy's arrays spell differently, scratch.py the memory of passes on a CPU.

The engine's side of the path is in `engine/execution`: model_runner.py calls the sampler, verification.py
chooses the rows, token_masks.py computes the grammars' masks and logprobs.py the log probabilities.
"""
