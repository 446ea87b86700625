"""One worker: one device with its share of the model and of the KV cache."""

from __future__ import annotations

from time import perf_counter

import torch
from torch import Tensor

from trifocal.attention.base import AttentionBackend, AttentionBatch
from trifocal.attention.registry import choose_backend
from trifocal.config.engine import EngineConfig
from trifocal.log import get_logger
from trifocal.models.loader import load_model
from trifocal.types import Capacity, StepPlan, StepResult
from trifocal.worker import memory
from trifocal.worker.context import WorkerContext
from trifocal.worker.graphs import GraphRunner
from trifocal.worker.model_runner import ModelRunner
from trifocal.worker.sampler import Sampler

logger = get_logger(__name__)


class Worker:
    """Loads weights, measures memory, allocates the KV cache, captures steps; then executes plans.

    Raises `ConfigError` where the checkpoint or the memory does not do.
    """

    @torch.inference_mode()
    def __init__(self, config: EngineConfig, context: WorkerContext) -> None:
        self.config = config
        self.context = context
        self.platform = context.platform
        self.dtype: torch.dtype = getattr(torch, config.model.dtype)
        started = perf_counter()
        self.model = load_model(
            config.model.spec,
            dtype=self.dtype,
            device=context.device,
            load_format=config.model.load_format,
            packed_cache=config.model.packed_cache,
            seed=config.model.seed,
            progress=True,
            quantization=config.model.quantization,
            kernels=self.platform.kernels(),
            methods=self.platform.linear_methods(),
            group=context.group,
        )
        how = f", linear layers in {config.model.quantization.method}" if config.model.quantization else ""
        logger.info(
            "weights loaded in %.1f s (%s%s, %s)", perf_counter() - started, config.model.dtype, how, context.device
        )
        self.cache_spec = self.model.language_model.kv_cache_spec(
            block_size=config.cache.block_size,
            dtype=self.dtype,
            cache_dtype=getattr(torch, config.cache.kv_cache_dtype),
        )
        self.backend = choose_backend(self.platform.default_attention, self.cache_spec)
        self.graphs, self.capacity = self._allocate()
        started = perf_counter()
        self.graphs.capture(self.context.device)
        logger.info("steps captured in %.1f s (--enforce-eager captures none)", perf_counter() - started)
        self.reset()

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        return self.runner.execute(plan)

    def reset(self) -> None:
        """Forget every sequence and all embeddings; weights, recordings and the memory of the KV cache stay."""
        sampler = Sampler(self.config.model.num_vocab, self.platform.kernels())
        self.runner = ModelRunner(self.model, self.graphs, sampler, self.context)

    # ------------------------------------------------------------------------------------------ memory

    def _allocate(self) -> tuple[GraphRunner, Capacity]:
        """The KV cache with all that reads and writes it, and what there is room for."""
        config, graphs = self.config, self.platform.graphs()
        sizes = config.parallel.capture_sizes if graphs is not None else ()
        scratch_blocks = 1 if sizes else 0  # behind those that sequences get
        block_bytes = self.backend.bytes_per_block(self.cache_spec)
        num_blocks = memory.num_blocks(config, self.platform, block_bytes, scratch_blocks, self._profile_peak)
        attention = self._attention(num_blocks + scratch_blocks)
        capacity = Capacity(
            num_blocks=num_blocks,
            max_model_len=memory.max_model_len(config, num_blocks),
            bytes_per_embed=config.model.spec.text.hidden_size * self.dtype.itemsize,
        )
        return GraphRunner(self.model, attention, graphs, sizes, scratch_block=num_blocks), capacity

    def _attention(self, num_blocks: int) -> AttentionBackend:
        return self.backend(self.backend.allocate(self.cache_spec, num_blocks, self.context.device))

    def _profile_peak(self) -> int:
        """Bytes that a full step may take beside weights and KV cache, measured on dummy input.

        Where a full step would take long (CPU) a smaller one is measured and scaled: memory grows with its tokens.
        """
        budget = memory.step_tokens(self.config)
        num_tokens = min(budget, self.platform.max_profile_tokens or budget)
        attention = self._attention(-(-num_tokens // self.config.cache.block_size))
        item = self.model.dummy_item(num_tokens)
        with self.platform.measure_peak() as peak:
            if item is not None:
                self.model.encode([item])
            hidden = self._dummy_pass(attention, num_tokens)
            self.model.logits(hidden[: self.config.scheduling.max_num_seqs])
        return peak.num_bytes * budget // num_tokens

    def _dummy_pass(self, attention: AttentionBackend, num_tokens: int) -> Tensor:
        """Hidden states of one sequence of the same token, at the beginning of the cache."""
        tokens = torch.arange(num_tokens, device=self.context.device)
        num_blocks = -(-num_tokens // self.config.cache.block_size)
        tables = torch.arange(num_blocks, device=self.context.device)[None]
        batch = AttentionBatch(tokens, tables, query_lens=[num_tokens], context_lens=[num_tokens])
        positions = tokens.expand(self.model.position_rows, -1)
        return GraphRunner(self.model, attention, None)(self.model.merge(torch.zeros_like(tokens)), positions, batch)
