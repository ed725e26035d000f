"""An answering engine of someone else's making, named in a config by its import path: it talks until it is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from deployments.contracts import Delta, Embeds, GenerateRequest, GenerationEvent
from deployments.generator import GeneratorSettings


class EndlessAnswerer:
    """Says one word after the other; `stopped` is set when nobody listens any more."""

    stopped: asyncio.Event

    def __init__(self, settings: GeneratorSettings, embedder: Embeds) -> None:
        type(self).stopped = asyncio.Event()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerationEvent]:
        try:
            while True:
                yield Delta("word ")
                await asyncio.sleep(0.001)
        finally:
            self.stopped.set()
