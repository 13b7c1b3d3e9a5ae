import numpy as np
import pytest

from sealface_bench import engine


def test_seals_tree_and_ours_are_equal_bit_for_bit():
    bench = engine.Bench(128, columns=8)
    tree = engine.SealTree(bench.layout, bench.secret, 8)
    ours = engine.Evaluator(bench.layout, bench._public(), tree.rotor.keys)
    theirs = tree.residues(tree.expand(bench.probe.residues[0]))
    assert (ours._split(bench.probe.residues[0], 8) == theirs).all()


def test_every_step_is_measured_and_exact_enough():
    said = []
    found = engine.measure(32, rounds=1, blocks=2, renewals=(1, 12), tell=said.append)
    assert (found["dim"], found["columns"], found["parameter_set"]) == (32, 32, "ckks-n4096-v1")
    assert found["templates_a_block"] == 4096 - 64
    assert found["probe_bytes"] == 61_440
    assert found["result_bytes"] == 46_080
    assert found["block_bytes"] == 32 * 61_440
    assert found["evaluation_key_bytes"] < 2_000_000
    assert found["max_abs_score_error"] < 2e-4
    rates = [value for name, value in found.items() if name.endswith(("_per_s", "_ms")) or name.startswith("ratio")]
    assert len(rates) > 11
    assert all(np.isfinite(rate) and rate >= 0 for rate in rates)
    assert found["ratio_expand"] == found["seal_expand_ms"] / found["expand_ms"]
    assert said


def test_the_noise_of_renewals_is_measured():
    bench = engine.Bench(128, columns=16)
    _, block = bench.importing(1)
    found = bench.renewing(block, [1, 150])
    first, last = found["renewed_1_rms_score_error"], found["renewed_150_rms_score_error"]
    assert found["renewed_0_rms_score_error"] < bench.shape.noise
    # each adds two zeros under the public key to every coefficient, and a probe has length 1
    gathered = np.sqrt(149 * 2 * 10.5 * (1 + 2 * 4096 * 2 / 3)) / 2**27
    assert np.sqrt(max(0.0, last**2 - first**2)) == pytest.approx(gathered, rel=0.4)
    assert found["renewed_150_max_score_error"] > last
    assert {"renew_blind_ms", "renew_keys_ms", "renew_unblind_ms"} <= set(found)
