import numpy as np

from sealface_bench import engine


def test_seals_tree_and_ours_are_equal_bit_for_bit():
    bench = engine.Bench(128, columns=8)
    tree = engine.SealTree(bench.layout, bench.secret, 8)
    ours = engine.Evaluator(bench.layout, bench._public(), tree.rotor.keys)
    theirs = tree.residues(tree.expand(bench.probe.residues[0]))
    assert (ours._split(bench.probe.residues[0], 8) == theirs).all()


def test_every_step_is_measured_and_exact_enough():
    said = []
    found = engine.measure(32, rounds=1, blocks=2, tell=said.append)
    assert (found["dim"], found["columns"], found["parameter_set"]) == (32, 32, "ckks-n4096-v1")
    assert found["templates_a_block"] == 4096 - 64
    assert found["probe_bytes"] == 61_440
    assert found["result_bytes"] == 46_080
    assert found["block_bytes"] == 32 * 61_440
    assert found["evaluation_key_bytes"] < 2_000_000
    assert found["max_abs_score_error"] < 2e-4
    rates = [value for name, value in found.items() if name.endswith(("_per_s", "_ms")) or name.startswith("ratio")]
    assert len(rates) > 8
    assert all(np.isfinite(rate) and rate >= 0 for rate in rates)
    assert found["ratio_expand"] == found["seal_expand_ms"] / found["expand_ms"]
    assert said
