"""The checks of ``pagefleet doctor`` that concern a worker: processor, torch, CUDA, the model, memory."""
