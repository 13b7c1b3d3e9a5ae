"""Parameter sets and the check that each is as secure as it claims."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from sealface.errors import InvalidInput

# Largest log2 of the whole modulus (special prime included) for ternary secrets; the first column is
# classical, the second quantum security. HomomorphicEncryption.org standard (Albrecht et al. 2018).
_LARGEST_MODULUS_BITS: Final[dict[int, dict[int, tuple[int, int]]]] = {
    128: {1024: (27, 25), 2048: (54, 51), 4096: (109, 101), 8192: (218, 202), 16384: (438, 411)},
    192: {1024: (19, 17), 2048: (37, 35), 4096: (75, 70), 8192: (152, 141), 16384: (305, 284)},
    256: {1024: (14, 13), 2048: (29, 27), 4096: (58, 54), 8192: (118, 109), 16384: (237, 220)},
}


class InsecureParameters(ValueError):
    """A parameter set claims more security than its modulus and degree give."""


class UnknownParameters(InvalidInput):
    """No parameter set of that name."""


def _is_prime(n: int) -> bool:
    """Miller and Rabin's test, exact below 3.4e14 with these bases (Jaeschke 1993)."""
    bases = (2, 3, 5, 7, 11, 13, 17)
    if n < 2 or any(n % base == 0 for base in bases):
        return n in bases
    twos = (n - 1 & 1 - n).bit_length() - 1
    for base in bases:
        x = pow(base, n - 1 >> twos, n)
        if x != 1 and n - 1 not in (pow(x, 1 << i, n) for i in range(twos)):
            return False
    return True


@dataclass(frozen=True)
class ParameterSet:
    """CKKS parameters under a name that travels with every key and ciphertext.

    Attributes:
        name: stable identifier; its meaning never changes once released.
        degree: N, the ring is Z[x]/(x^N + 1).
        primes: two data primes below 2^30, then the special prime of key switching below 2^40; all 1 mod 2N.
        template_scale_bits: log2 of the scale of a template.
        probe_scale_bits: log2 of the scale of a probe; higher, because expansion makes its noise the larger one.
        security_bits: claimed security.
        quantum: whether the claim is against quantum attacks (the stricter column).
    """

    name: str
    degree: int
    primes: tuple[int, ...]
    template_scale_bits: int = 27
    probe_scale_bits: int = 29
    security_bits: int = 128
    quantum: bool = True

    def __post_init__(self) -> None:
        limits = _LARGEST_MODULUS_BITS.get(self.security_bits, {}).get(self.degree)
        if limits is None:
            raise InsecureParameters(f"{self.name}: no security estimate for degree {self.degree}")
        limit = limits[1 if self.quantum else 0]
        if self.modulus_bits > limit:
            raise InsecureParameters(
                f"{self.name}: a modulus of {self.modulus_bits} bits at degree {self.degree} is over the "
                f"{limit} bits that {self.security_bits}-bit security allows"
            )
        if len(set(self.primes)) != 3 or any(p >= 1 << 30 for p in self.data_primes) or max(self.primes) >> 40:
            raise InsecureParameters(f"{self.name}: two data primes below 2^30 and one below 2^40 are needed")
        if any(p % (2 * self.degree) != 1 or not _is_prime(p) for p in self.primes):
            raise InsecureParameters(f"{self.name}: every modulus must be a prime that is 1 mod 2N")
        product_bits = self.template_scale_bits + self.probe_scale_bits
        if product_bits + 3 >= self.data_modulus.bit_length():
            raise InsecureParameters(f"{self.name}: no room for a product at {product_bits} bits of scale")

    @property
    def data_primes(self) -> tuple[int, ...]:
        """The primes a ciphertext is made of."""
        return self.primes[:-1]

    @property
    def template_scale(self) -> float:
        """Scale of a template."""
        return float(1 << self.template_scale_bits)

    @property
    def probe_scale(self) -> float:
        """Scale of a probe."""
        return float(1 << self.probe_scale_bits)

    @property
    def product_scale(self) -> float:
        """Scale of a score before the result is switched to one prime."""
        return self.template_scale * self.probe_scale

    @cached_property
    def data_modulus(self) -> int:
        """Product of the data primes."""
        product = 1
        for prime in self.data_primes:
            product *= prime
        return product

    @property
    def modulus_bits(self) -> int:
        """Bits of the whole modulus, special prime included: what security depends on."""
        product = 1
        for prime in self.primes:
            product *= prime
        return product.bit_length()


# N=4096 holds dimensions up to 2,048 (a group needs an empty position beside one template), N=8192 the rest.
N4096: Final = ParameterSet("ckks-n4096-v1", 4096, (1073668097, 1073692673, 1099511480321))
# The modulus is as long, so that N=8192 has 256 bits of security: also for those who want that of short vectors.
N8192: Final = ParameterSet("ckks-n8192-v1", 8192, (1073643521, 1073692673, 1099511480321), security_bits=256)
_SETS: Final = {parameters.name: parameters for parameters in (N4096, N8192)}


def parameter_sets() -> tuple[ParameterSet, ...]:
    """All sets, smallest first."""
    return tuple(_SETS.values())


def parameter_set(name: str) -> ParameterSet:
    """The set of that name.

    Raises:
        UnknownParameters: there is none.
    """
    try:
        return _SETS[name]
    except KeyError:
        raise UnknownParameters(f"no parameter set of that name: use one of {', '.join(_SETS)}") from None


def for_dimension(dimension: int, security_bits: int = 128) -> ParameterSet:
    """The smallest set, of that security at least, whose groups hold vectors of that many elements and a check.

    Raises:
        UnknownParameters: there is none.
    """
    for parameters in _SETS.values():
        if 2 * dimension <= parameters.degree and parameters.security_bits >= security_bits:
            return parameters
    raise UnknownParameters(
        f"no parameter set holds vectors of {dimension} elements with {security_bits} bits of security: "
        "4,096 elements and 256 bits are the most"
    )
