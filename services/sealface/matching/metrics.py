"""What Prometheus is told of searches and workers. Nothing in it depends on whether anybody is found."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sealface.matching.matcher import Search
from sealface.runtime.metrics import SECONDS
from sealface.workers.pool import WorkerPool

_USAGE_S = 2.0  # for all workers together
_SHARES = (0.5, 0.9, 0.99, 0.999, 1.0)
_OPERATION = ("operation",)


class SearchMetrics:
    """What passes over galleries took. Searches that shared one count as one, but for the templates they scored.

    Args:
        registry: the server's.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._scored = Counter(
            "sealface_scored_templates",
            "Templates compared with probes, counted for each probe.",
            ("gallery", *_OPERATION),
            registry=registry,
        )
        self._expansion = Histogram(
            "sealface_expansion_seconds",
            "Expanding the probes of a pass.",
            _OPERATION,
            registry=registry,
            buckets=SECONDS,
        )
        self._scoring = Histogram(
            "sealface_scoring_seconds",
            "Scoring a pass: multiplying, and finishing the results.",
            _OPERATION,
            registry=registry,
            buckets=SECONDS,
        )
        self._share = Histogram(
            "sealface_share_searched_ratio",
            "Share of a gallery that an identification searched; below 1 where partial answers are allowed.",
            registry=registry,
            buckets=_SHARES,
        )
        for operation in ("verify", "identify"):
            self._expansion.labels(operation)
            self._scoring.labels(operation)

    def searched(self, search: Search) -> None:
        """Take in a pass all of whose results were taken."""
        operation = "identify" if search.whole else "verify"
        self._scored.labels(search.gallery.id, operation).inc(search.scored)
        self._expansion.labels(operation).observe(search.timing.expand_ms / 1e3)
        self._scoring.labels(operation).observe(search.timing.pass_ms / 1e3)
        if search.whole:
            self._share.observe(search.share)


class WorkerMetrics:
    """Asks all workers, wherever they run, what they hold.

    Args:
        pool: of the workers.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    def __call__(self) -> list[Metric]:
        """What they say; one that is silent is down."""
        of_worker, of_shard = ("worker",), ("worker", "gallery")
        up = GaugeMetricFamily("sealface_worker_up", "1 if a worker says what it holds, else 0.", labels=of_worker)
        limit = GaugeMetricFamily(
            "sealface_worker_memory_limit_bytes", "Memory that the shards of a worker may take.", labels=of_worker
        )
        memory = GaugeMetricFamily(
            "sealface_worker_memory_bytes", "Memory that a worker's shard of a gallery takes.", labels=of_shard
        )
        shards = GaugeMetricFamily("sealface_worker_shards", "Galleries that a worker holds.", labels=of_worker)
        blocks = GaugeMetricFamily(
            "sealface_worker_blocks", "Blocks and groups in a worker's shard of a gallery.", labels=of_shard
        )
        cache = {
            name: CounterMetricFamily(f"sealface_cache_{name}", text, labels=of_worker)
            for name, text in (
                ("hits", "Ciphertexts that Redis had."),
                ("misses", "Ciphertexts that Redis had not."),
                ("healed", "Ciphertexts that Redis had otherwise than the record."),
                ("errors", "Times that Redis did not answer, was slow, or refused."),
            )
        }
        for worker, usage in self._pool.usage(_USAGE_S).items():
            up.add_metric((worker,), usage is not None)
            if usage is None:
                continue
            limit.add_metric((worker,), usage.limit)
            shards.add_metric((worker,), len({shard.gallery for shard in usage.shards}))
            for shard in usage.shards:
                memory.add_metric((worker, shard.gallery), shard.nbytes)
                blocks.add_metric((worker, shard.gallery), shard.blocks)
            for name, family in cache.items():
                if usage.cached is not None:
                    family.add_metric((worker,), getattr(usage.cached, name))
        return [up, limit, memory, shards, blocks, *cache.values()]
