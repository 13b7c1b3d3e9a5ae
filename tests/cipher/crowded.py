"""Products of several probes while other threads allocate and free from the same arena (MALLOC_ARENA_MAX=1)."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sealface.cipher import kernels
from sealface.cipher.parameters import N4096
from sealface.cipher.product import LANES, scores

COLUMNS, DEGREE, ROUNDS = 32, 1024, 60


def main() -> None:
    rng, primes = np.random.default_rng(9), N4096.data_primes
    shape = (2, DEGREE // LANES, COLUMNS, 2, LANES)
    blocks = list(rng.integers(0, primes[0], (4, *shape), dtype=np.uint32))
    probes = rng.integers(0, primes[0], (8, *shape), dtype=np.uint32)
    expected = np.stack([scores(blocks, probe[None], primes)[0] for probe in probes])
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            kernels.ntt(np.full((8, DEGREE), 7, np.int64), primes[0])  # allocates as the kernels do

    with ThreadPoolExecutor(6) as pool:
        try:
            others = [pool.submit(disturb) for _ in range(2)]
            for got in pool.map(lambda _: scores(blocks, probes, primes), range(ROUNDS)):
                assert np.array_equal(got, expected), "the products of several probes are not those of each"
        finally:
            stop.set()
        for other in others:
            other.result()


if __name__ == "__main__":
    main()
