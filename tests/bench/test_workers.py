import json

from sealface_bench import workers


def test_one_worker_and_two_are_compared_on_all_blocks_of_a_gallery():
    found = workers.measure(templates=600, dimension=128, batch=2, rounds=1)
    json.dumps(found)
    assert (found["templates"], found["dim"], found["batch"]) == (600, 128, 2)
    for step, name in (("score", "multiply_ms"), ("pass", "pass_ms"), ("wall", "wall_ms")):
        assert found[f"speedup_{step}"] == found[f"local_1_{name}"] / found[f"local_2_{name}"]
    assert found["speedup_score_cpu"] == found["cpu_1_score_ms"] / found["cpu_2_score_ms"]
    assert found["local_1_wall_ms"] > found["local_1_pass_ms"] > found["local_1_multiply_ms"] > 0
    assert "ray_adds_ms" not in found


def test_no_cluster_is_begun_for_who_wants_none_or_has_one():
    with workers.cluster(False) as address:
        assert address == ""
    with workers.cluster(True, "127.0.0.1:6379") as address:
        assert address == "127.0.0.1:6379"
