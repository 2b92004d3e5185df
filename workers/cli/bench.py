"""``pagefleet bench``: compare a fleet on this machine with its engine alone."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from pagefleet.api.cli.settings_options import setting_option
from pagefleet.workers.bench.workload import Workload
from pagefleet.workers.settings import WorkerSettings, let_threads_sleep


@click.command()
@setting_option(WorkerSettings, "model", default="smollm2-135m-instruct")
@setting_option(WorkerSettings, "dtype", default="bfloat16")
@setting_option(WorkerSettings, "backend", default="reference")
@click.option(
    "--rounds", "num_rounds", default=5, show_default=True, help="Number of rounds: one run on each side."
)
@click.option(
    "--requests", "num_requests", default=64, show_default=True, help="Number of concurrent requests."
)
@click.option(
    "--idle",
    "num_idle",
    default=15,
    show_default=True,
    help="Number of single requests that measure the time to first token of an idle fleet.",
)
@click.option(
    "--sampling",
    "part",
    flag_value="sampling",
    help="Measure only the cost of mixed sampling parameters per step.",
)
@click.option(
    "--speculation", "part", flag_value="speculation", help="Measure only the gain of speculative tokens."
)
@click.option(
    "--plane",
    "part",
    flag_value="plane",
    help="Measure only the CPU time and the delay between the engine's steps and a client, with the null "
    "backend.",
)
@click.option("--ingest", "part", flag_value="ingest", help="Measure only submits and short jobs per second.")
@click.option(
    "--host",
    "part",
    flag_value="host",
    help="Measure only the host's work for a decode step, without a model.",
)
@click.option(
    "--vllm",
    type=click.Path(path_type=Path),
    default=Path("build/peers/vllm/bin/python"),
    show_default=True,
    help="Python of an environment with vLLM, to compare with `--host`.",
)
@click.option(
    "--through",
    type=click.Choice(["gateway"]),
    help="Measure only the delay of tokens through the gateway compared to a FleetClient.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def bench(
    model: str,
    dtype: str,
    backend: str,
    num_rounds: int,
    num_requests: int,
    num_idle: int,
    part: str | None,
    vllm: Path,
    through: str | None,
    as_json: bool,
) -> None:
    """Compare a fleet on this machine with its engine alone.

    Each round runs the same load on the engine in this process and through a temporary fleet. With the
    defaults it takes about 10 minutes on 2 cores.

    \b
    Examples:
      pagefleet bench
      pagefleet bench --backend null --rounds 1 --json
      pagefleet bench --speculation --rounds 2
      pagefleet bench --host
      pagefleet bench --plane --rounds 3
      pagefleet bench --through gateway --rounds 3
      pagefleet bench --ingest --rounds 3
    """
    from pagefleet.engine import LLMEngine
    from pagefleet.workers.app import engine_config
    from pagefleet.workers.bench.report import run_bench
    from pagefleet.workers.local.local_stack import LocalStack

    let_threads_sleep()
    if part == "plane":
        from pagefleet.workers.bench.plane import run_plane_bench

        click.echo(json.dumps(run_plane_bench(num_rounds, _report), indent=2))
        return
    if part == "ingest":
        from pagefleet.workers.bench.ingest import run_ingest_bench

        click.echo(json.dumps(run_ingest_bench(num_rounds, _report), indent=2))
        return
    if through is not None:
        from pagefleet.workers.bench.gateway import run_gateway_bench

        click.echo(json.dumps(run_gateway_bench(num_rounds, _report), indent=2))
        return
    if part == "host":
        from pagefleet.workers.bench.host import host_table, run_host_bench

        figures = run_host_bench(model, peer=vllm, progress=_report)
        click.echo(json.dumps(figures, indent=2) if as_json else host_table(figures))
        return
    settings = WorkerSettings.from_files(model=model, dtype=dtype, backend=backend)
    if part == "sampling":
        from pagefleet.workers.bench.sampling import run_sampling_bench

        figures = run_sampling_bench(
            engine_config(settings), num_requests=num_requests, num_rounds=num_rounds, progress=_report
        )
        click.echo(json.dumps(figures, indent=2))
        return
    if part == "speculation":
        from pagefleet.workers.bench.speculation import run_speculation_bench

        figures = run_speculation_bench(engine_config(settings), num_rounds=num_rounds, progress=_report)
        click.echo(json.dumps(figures, indent=2))
        return
    engine = LLMEngine.from_config(engine_config(settings))
    arguments = ["--model", model, "--dtype", dtype, "--backend", backend]
    with (
        tempfile.TemporaryDirectory(prefix="pagefleet-bench-") as folder,
        LocalStack(Path(folder), arguments) as stack,
    ):
        figures = run_bench(
            engine,
            stack.redis_url,
            settings.name,
            Workload(num_requests=num_requests),
            num_rounds=num_rounds,
            num_idle=num_idle,
            progress=_report,
        )
    click.echo(json.dumps(figures, indent=2) if as_json else _table(figures))


def _report(line: str) -> None:
    click.echo(line, err=True)


def _table(figures: dict[str, Any]) -> str:
    ratio, idle = figures["fleet_over_in_process"], figures["idle_ttft_ms"]
    rows = [
        ("in process", f"{figures['in_process']['output_tok_s']:.1f} output tok/s"),
        ("fleet", f"{figures['fleet']['output_tok_s']:.1f} output tok/s"),
        ("fleet / in process", f"{ratio['median']:.3f}  ({ratio['min']:.3f} .. {ratio['max']:.3f})"),
        ("batch", f"largest {figures['max_batch']}, mean {figures['mean_batch']:.1f}"),
        ("TTFT p50 / p99", f"{figures['ttft_ms']['p50']:.0f} / {figures['ttft_ms']['p99']:.0f} ms"),
        ("ITL p50 / p99", f"{figures['itl_ms']['p50']:.0f} / {figures['itl_ms']['p99']:.0f} ms"),
        ("idle TTFT, 16 tokens", f"{idle['fleet_p50']:.1f} ms, {idle['added_p50']:.1f} more than in process"),
        ("machine", f"{figures['machine']['cpu']}, {figures['machine']['cores']} cores"),
    ]
    return "\n".join(f"{name:<22} {value}" for name, value in rows)
