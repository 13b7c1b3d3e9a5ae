import json

import pytest

from sealface_bench import cold

pytestmark = pytest.mark.servers


def test_every_way_loads_all_of_a_gallery_from_where_it_says():
    found = cold.measure(templates=3000, dimension=128, workers=2, rounds=1, service=False)
    json.dumps(found)
    assert found["templates"] == 3000 and found["blocks"] > 1
    size = found["bytes"]
    few = size // 20  # names, digests and what keeps the books
    assert found["record_from_redis_bytes"] < few > found["record_to_redis_bytes"]
    assert found["empty_cache_from_redis_bytes"] < few
    assert size <= found["empty_cache_to_redis_bytes"] < size + few
    assert size <= found["warm_cache_from_redis_bytes"] < size + few
    assert found["warm_cache_to_redis_bytes"] < few
    assert found["redis_used_bytes"] > size
    assert all(found[f"{way}_s"] > 0 for way in ("record", "empty_cache", "warm_cache"))
    assert found["steps"].keys() == {"fingerprint_ms", "record_ms", "digest_ms", "cache_ms", "memory_ms"}
