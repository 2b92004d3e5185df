"""Make the card that describes the worker's model to producers."""

from __future__ import annotations

from pagefleet.api.chat.chat_template import reasoning_parser_of, tool_parser_of
from pagefleet.api.contract.messages import Fingerprint, ModelCard, SamplingDefaults
from pagefleet.engine import LLMEngine
from pagefleet.workers.settings import WorkerSettings


def make_card(settings: WorkerSettings, engine: LLMEngine) -> ModelCard:
    info = engine.info
    fingerprint = Fingerprint(
        weights=info.fingerprint.weights,
        tokenizer=info.fingerprint.tokenizer,
        dtype=info.fingerprint.dtype,
        backend=info.fingerprint.backend,
        version=info.fingerprint.version,
    )
    template = engine.tokenizer.chat_template
    tools, reasoning = settings.tool_parser, settings.reasoning_parser
    aliases = dict.fromkeys([settings.model, *settings.aliases])
    return ModelCard(
        name=settings.name,
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
        aliases=[alias for alias in aliases if alias != settings.name],
        max_queue_depth=settings.max_queue_depth,
        max_tenant_depth=settings.max_tenant_depth,
        max_tenant_bytes=settings.max_tenant_bytes,
        # The default TTL must also be allowed in a request.
        max_result_ttl_s=max(settings.max_result_ttl_s, settings.result_ttl_s),
        default_sampling=SamplingDefaults(**info.default_sampling),
        tool_parser=tool_parser_of(template) if tools == "auto" else tools,
        reasoning_parser=reasoning_parser_of(template) if reasoning == "auto" else _named(reasoning),
        fingerprint=fingerprint,
    )


def _named(parser: str) -> str | None:
    return None if parser == "none" else parser
