"""The same real faces through services on PostgreSQL, Redis and Ray: `make demo-cluster`.

All three are begun on this machine's loopback, on free ports, and ended at the end; nothing that runs already is used.
Exits 0 only if every decision is right, and each of them has done its part.
"""

from __future__ import annotations

import sys

import demo
import redis as redis_client

from deploy import servers
from sealface.storage.database import open_database
from sealface.storage.schema import RECORD


def main() -> int:
    """Run the demo; 0 if every decision is right."""
    console = demo.console
    with servers.postgresql() as postgresql, servers.redis() as redis, servers.ray_cluster() as ray:
        console.print(f"PostgreSQL at 127.0.0.1:{postgresql.port}, Redis at 127.0.0.1:{redis.port}, Ray at {ray.url}")
        engine = open_database(postgresql.url)
        RECORD.migrate(engine)
        wrong = demo.main(
            SEALFACE_DATABASE=postgresql.url,
            SEALFACE_REDIS=redis.url,
            SEALFACE_POOL="ray",
            SEALFACE_RAY_ADDRESS=ray.url,
            SEALFACE_WORKERS="2",
            SEALFACE_REPLICAS="2",
            SEALFACE_MEMORY="2",  # the Ray cluster has 4 GB
        )
        with engine.begin() as transaction:
            rows = transaction.exec_driver_sql("SELECT count(*), sum(length(ciphertext)) FROM templates").one()
        engine.dispose()
        with redis_client.Redis(port=redis.port) as cache:
            cached = sum(1 for _ in cache.scan_iter("sealface:*:[tb]*"))
    console.print(
        f"[bold]PostgreSQL[/] held {rows[0]} templates, {rows[1]:,} bytes; [bold]Redis[/] {cached} entries; "
        "[bold]Ray[/] ran 2 workers, each block at both"
    )
    return 0 if not wrong and rows[0] and cached else 1


if __name__ == "__main__":
    sys.exit(main())
