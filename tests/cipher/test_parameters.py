from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenseal import sealapi

from sealface.cipher import parameters as module
from sealface.cipher.parameters import (
    N4096,
    N8192,
    InsecureParameters,
    ParameterSet,
    UnknownParameters,
    for_dimension,
    parameter_set,
)
from sealface.cipher.seal import _context

SMALL, OTHER, SPECIAL = N4096.primes


@pytest.mark.parametrize("shipped", [N4096, N8192], ids=lambda s: s.name)
def test_shipped_sets_pass_our_check_and_seals(shipped: ParameterSet) -> None:
    claimed = {4096: 128, 8192: 256}[shipped.degree]
    assert ParameterSet(shipped.name, shipped.degree, shipped.primes, security_bits=claimed) == shipped
    assert shipped.quantum
    context = _context(shipped)
    assert context.parameters_set()
    assert f"{claimed}" in str(context.key_context_data().qualifiers().sec_level)
    assert context.key_context_data().total_coeff_modulus_bit_count() == shipped.modulus_bits


@pytest.mark.parametrize(
    ("degree", "claim"),
    [
        (2048, {}),  # 100 bits where 51 are allowed
        (4096, {"security_bits": 192}),  # 70 allowed
        (4096, {"security_bits": 192, "quantum": False}),  # 75 allowed
        (4096, {"security_bits": 256}),
        (1000, {}),  # no estimate
        (4096, {"security_bits": 100}),
    ],
)
def test_too_large_a_modulus_is_refused(degree: int, claim: dict[str, Any]) -> None:
    with pytest.raises(InsecureParameters, match=r"modulus|estimate"):
        ParameterSet("weak", degree, N4096.primes, **claim)


def primes_of(*bits: int) -> tuple[int, ...]:
    """Primes that are 1 mod 2^14, of these bits."""
    return tuple(next(p for p in range((1 << b) - (1 << 14) + 1, 0, -(1 << 14)) if module._is_prime(p)) for b in bits)


@pytest.mark.parametrize(
    ("claim", "primes", "limit"),
    [
        (192, primes_of(40, 40, 40, 40), 152),  # CipherFace's setting for 192 bits: N=8192, 160 bits of modulus
        (256, primes_of(40, 40, 40), 118),  # and for 256: 120 bits
    ],
)
def test_cipherfaces_settings_for_192_and_256_bits_exceed_their_own_limits(
    claim: int, primes: tuple[int, ...], limit: int
) -> None:
    with pytest.raises(InsecureParameters, match=f"over the {limit} bits that {claim}-bit security allows"):
        ParameterSet("cipherface", 8192, primes, security_bits=claim, quantum=False)


@pytest.mark.parametrize("claim", [128, 192, 256])
@pytest.mark.parametrize("degree", [1024, 2048, 4096, 8192, 16384])
def test_the_table_is_the_standards_as_seal_has_it(claim: int, degree: int) -> None:
    level = getattr(sealapi.SEC_LEVEL_TYPE, f"TC{claim}")
    classical, quantum = module._LARGEST_MODULUS_BITS[claim][degree]
    assert classical == sealapi.CoeffModulus.MaxBitCount(degree, level)
    assert quantum < classical


@pytest.mark.parametrize("claim", [128, 192, 256])
@pytest.mark.parametrize("quantum", [False, True])
def test_every_level_has_its_boundary(claim: int, quantum: bool) -> None:
    limit = module._LARGEST_MODULUS_BITS[claim][8192][quantum]
    largest = min(29, limit // 3)
    fits = (*primes_of(largest, largest - 1), *primes_of(min(40, limit - 2 * largest + 1)))
    claimed = {"security_bits": claim, "quantum": quantum, "template_scale_bits": 20, "probe_scale_bits": 20}
    made = ParameterSet("fits", 8192, fits, **claimed)
    assert made.modulus_bits <= limit
    too_many = (*fits[:2], *primes_of(limit - made.modulus_bits + 42))
    with pytest.raises(InsecureParameters, match=f"over the {limit} bits that {claim}-bit security allows"):
        ParameterSet("exceeds", 8192, too_many, **claimed)


def test_the_limit_itself_is_the_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, accepted in ((N4096.modulus_bits, True), (N4096.modulus_bits - 1, False)):
        monkeypatch.setattr(module, "_LARGEST_MODULUS_BITS", {128: {4096: (109, limit)}})
        if accepted:
            ParameterSet("edge", 4096, N4096.primes)
        else:
            with pytest.raises(InsecureParameters, match="modulus"):
                ParameterSet("edge", 4096, N4096.primes)
        ParameterSet("edge", 4096, N4096.primes, quantum=False)


def composite() -> int:
    """A composite below 2^30 that is 1 mod 8192, so that only a primality test refuses it."""
    return next(n for n in range(8192 * 100_000 + 1, 1 << 30, 8192) if pow(2, n - 1, n) != 1)


@pytest.mark.parametrize(
    "primes",
    [
        (SMALL + 2, OTHER, SPECIAL),  # not 1 mod 2N
        (1073692673 + 8192 * 50_000, OTHER, SPECIAL),  # data prime over 2^30
        (SMALL, SMALL, SPECIAL),  # the same twice
        (SMALL, OTHER),  # no special prime
        (composite(), OTHER, SPECIAL),
        (SMALL, OTHER, SPECIAL - 2),
        (SMALL, OTHER, (1 << 40) + 8192 * 3 + 1),  # would not fit 40 bits on the wire
        (40961, OTHER, SPECIAL),  # a prime, but no room for a product
    ],
)
def test_wrong_primes_are_refused(primes: tuple[int, ...]) -> None:
    with pytest.raises(InsecureParameters, match=r"prime|room"):
        ParameterSet("wrong", 4096, primes)


def test_no_room_for_a_product_is_refused() -> None:
    with pytest.raises(InsecureParameters, match="room"):
        ParameterSet("large", 4096, N4096.primes, probe_scale_bits=31)


@given(st.integers(0, 200_000))
def test_primality(n: int) -> None:
    assert module._is_prime(n) == (n > 1 and all(n % f for f in range(2, int(n**0.5) + 1)))


@pytest.mark.parametrize("n", [3215031751, 2152302898747, 3474749660383, 561, 1373653])
def test_strong_pseudoprimes_are_composite(n: int) -> None:
    assert not module._is_prime(n)


def test_sets_by_name_and_dimension() -> None:
    assert parameter_set("ckks-n4096-v1") is N4096
    with pytest.raises(UnknownParameters) as caught:
        parameter_set("ckks-n2048-v1")
    assert caught.value.reason == "UNKNOWN_PARAMETERS"
    assert for_dimension(2) is N4096
    assert for_dimension(2048) is N4096
    assert for_dimension(2049) is N8192
    assert for_dimension(4096) is N8192
    assert for_dimension(128, security_bits=192) is N8192
    assert for_dimension(128, security_bits=256) is N8192
    for wrong in ((4097, 128), (128, 257)):
        with pytest.raises(UnknownParameters):
            for_dimension(*wrong)
