"""Prints which kernels are compiled, or loaded from the cache, only after `Ckks.warm`: none should be.

Run as `python -m tests.cipher.warmed`.
"""

from __future__ import annotations

import json
from itertools import chain

import numpy as np
from numba.core.registry import CPUDispatcher

from sealface.cipher import kernels, product, switching, wire
from sealface.cipher.distance import Metric
from sealface.cipher.layout import Layout
from sealface.cipher.parameters import parameter_sets
from sealface.cipher.scheme import Ckks
from tests.cipher.conftest import asked, units


def compiled() -> set[str]:
    """Every kernel with the types it is compiled for."""
    modules = (vars(module).items() for module in (kernels, product, switching, wire))
    dispatchers = {value for _, value in chain.from_iterable(modules) if isinstance(value, CPUDispatcher)}
    return {f"{kernel.py_func.__name__}{signature}" for kernel in dispatchers for signature in kernel.signatures}


def use() -> None:
    """Everything that services do."""
    scheme, rng = Ckks(), np.random.default_rng(0)
    for parameters in parameter_sets():
        key = scheme.generate(parameters)
        scheme.check_public(parameters, key.public)
        for material in key.evaluation.values():
            scheme.check_evaluation(parameters, material)
        for metric in (Metric.COSINE, Metric.EUCLIDEAN):
            layout = Layout(parameters, 100, metric)
            encryptor, opener = scheme.encryptor(layout, key.public), scheme.opener(layout, key.secret)
            vectors = 0.9 * units(rng, 2, 100)
            evaluator = scheme.evaluator(layout, key.public, key.evaluation, 2)
            evaluator.zeros.add_one()
            templates = {i: evaluator.admit(encryptor.template(v)) for i, v in enumerate(vectors)}
            group = evaluator.assemble({3: templates[0]}, evaluator.assemble(templates))
            shape, small = layout.shape(8), layout.shape(4)
            imported = evaluator.admit_block(shape, encryptor.block(shape, vectors))
            blinded, blinding = evaluator.blind(shape, imported)
            renewed = opener.renew(shape, blinded, asked(shape, [1]))
            stored = evaluator.unblind(shape, renewed, blinding, asked(shape, [1]))
            blocks = [evaluator.load(shape, data) for data in (stored, evaluator.seal(shape, templates))]
            for count in (1, 5):
                probes = [evaluator.admit_probe(encryptor.probe(vectors[0])) for _ in range(count)]
                leaves = evaluator.expand(probes, (layout.group, shape, small))
                for some in ([group], blocks):
                    of = some[0].shape
                    for positions in (None, [0]):
                        requested = [asked(of, positions)] * len(some)
                        for results in evaluator.score(some, leaves[of], requested):
                            opener.open(of, results)


if __name__ == "__main__":
    Ckks().warm()
    before = compiled()
    use()
    print(json.dumps({"warmed": sorted(before), "later": sorted(compiled() - before)}))
