"""TenSEAL's `sealapi`: key generation and encryption, and SEAL's streams.

SEAL reads and writes objects only through a file: an anonymous memory file keeps that in memory. Every stream
that SEAL loads is written here, a fixed prefix before residues that `wire` has checked (SEAL 4.3 in TenSEAL
0.3.18 predates the security fixes of its loader in 4.4.0). SEAL objects are made per call and never shared
between threads. All calls hold the GIL.
"""

from __future__ import annotations

import os
import struct
from functools import lru_cache
from typing import Any

import numpy as np
import tenseal.sealapi as sealapi
import zstandard

from sealface.cipher.parameters import ParameterSet
from sealface.cipher.ring import Residues

# magic, header size, version major, minor, compression, reserved, total size
_HEADER = struct.Struct("<HBBBBHQ")
_MAGIC, _VERSION, _RAW, _ZSTD = 0xA15E, (4, 3), 0, 2
_CIPHERTEXT = struct.Struct("<BQQQdQ")  # is NTT, polynomials, N, limbs, scale, correction factor
_PLAINTEXT = struct.Struct("<Qd")  # coefficients, scale


@lru_cache(maxsize=4)
def _context(parameters: ParameterSet) -> Any:
    encryption = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    encryption.set_poly_modulus_degree(parameters.degree)
    encryption.set_coeff_modulus([sealapi.Modulus(p) for p in parameters.primes])
    level = getattr(sealapi.SEC_LEVEL_TYPE, f"TC{parameters.security_bits}")
    context = sealapi.SEALContext(encryption, True, level)
    if not context.parameters_set():
        raise ValueError(f"{parameters.name}: {context.parameters_error_message()}")
    return context


class _MemoryFile:
    """An anonymous file that SEAL can open by path; its memory is freed when it is closed."""

    def __enter__(self) -> _MemoryFile:
        self._fd = os.memfd_create("sealface", os.MFD_CLOEXEC)
        self.path = f"/proc/self/fd/{self._fd}"
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self) -> bytes:
        size = os.fstat(self._fd).st_size
        return os.pread(self._fd, size, 0)

    def write(self, data: bytes) -> None:
        os.pwrite(self._fd, data, 0)


def _members(saved: Any) -> bytes:
    """The members of a SEAL object, uncompressed, without the outer header."""
    with _MemoryFile() as file:
        saved.save(file.path)
        stream = file.read()
    compression = _HEADER.unpack_from(stream)[4]
    body = stream[_HEADER.size :]
    return zstandard.ZstdDecompressor().decompressobj().decompress(body) if compression == _ZSTD else body


def _stream(members: bytes) -> bytes:
    return _HEADER.pack(_MAGIC, _HEADER.size, *_VERSION, _RAW, 0, _HEADER.size + len(members)) + members


def _array(residues: Residues) -> bytes:
    """SEAL's DynArray: nested header, count, 64-bit words."""
    words = np.ascontiguousarray(residues, "<u8").tobytes()
    return _stream(struct.pack("<Q", residues.size) + words)


def _parms_id(words: list[int]) -> bytes:
    return struct.pack("<4Q", *words)


def _ciphertext_members(parms_id: bytes, residues: Residues, scale: float) -> bytes:
    polynomials, limbs, degree = residues.shape
    return parms_id + _CIPHERTEXT.pack(1, polynomials, degree, limbs, scale, 1) + _array(residues)


def _residues(members: bytes, at: int, shape: tuple[int, ...]) -> Residues:
    words = np.frombuffer(members, "<u8", count=int(np.prod(shape)), offset=at)
    return words.astype(np.uint64).reshape(shape)


_CIPHERTEXT_PREFIX = 32 + _CIPHERTEXT.size + _HEADER.size + 8
_PLAINTEXT_PREFIX = 32 + _PLAINTEXT.size + _HEADER.size + 8


def _load(parameters: ParameterSet, target: Any, members: bytes) -> Any:
    with _MemoryFile() as file:
        file.write(_stream(members))
        target.load(_context(parameters), file.path)
    return target


def _secret_object(parameters: ParameterSet, secret: Residues) -> Any:
    members = _parms_id(_context(parameters).key_parms_id()) + _PLAINTEXT.pack(secret.size, 1.0) + _array(secret)
    return _load(parameters, sealapi.SecretKey(), members)


def generate(parameters: ParameterSet) -> tuple[Residues, Residues]:
    """A fresh key pair in NTT form: secret (limbs, N) and public (2, limbs, N), special prime included."""
    generator = sealapi.KeyGenerator(_context(parameters))
    public = sealapi.PublicKey()
    generator.create_public_key(public)
    limbs = len(parameters.primes)
    return (
        _residues(_members(generator.secret_key()), _PLAINTEXT_PREFIX, (limbs, parameters.degree)),
        _residues(_members(public), _CIPHERTEXT_PREFIX, (2, limbs, parameters.degree)),
    )


def galois_keys(parameters: ParameterSet, secret: Residues, elements: list[int]) -> dict[int, Residues]:
    """Keys that switch the automorphisms x -> x^element back to the secret.

    Returns:
        element -> (data limbs as digits, 2, limbs, N), in NTT form.
    """
    generator = sealapi.KeyGenerator(_context(parameters), _secret_object(parameters, secret))
    keys = sealapi.GaloisKeys()
    generator.create_galois_keys(elements, keys)
    return _galois_residues(parameters, keys)


def _galois_residues(parameters: ParameterSet, keys: Any) -> dict[int, Residues]:
    members = _members(keys)
    shape = (2, len(parameters.primes), parameters.degree)
    entry = _HEADER.size + _CIPHERTEXT_PREFIX + int(np.prod(shape)) * 8
    at = 32
    (slots,) = struct.unpack_from("<Q", members, at)
    at += 8
    found: dict[int, Residues] = {}
    for slot in range(slots):  # slot (element - 1) / 2 holds one ciphertext a digit, or none
        (digits,) = struct.unpack_from("<Q", members, at)
        at += 8
        if digits:
            starts = [at + i * entry + _HEADER.size + _CIPHERTEXT_PREFIX for i in range(digits)]
            found[2 * slot + 1] = np.stack([_residues(members, start, shape) for start in starts])
            at += digits * entry
    return found


class Encryptor:
    """Encrypts coefficient vectors under one public key. Not for several threads at once."""

    def __init__(self, parameters: ParameterSet, public: Residues) -> None:
        context = _context(parameters)
        members = _ciphertext_members(_parms_id(context.key_parms_id()), public, 1.0)
        self._parameters = parameters
        self._first = _parms_id(context.first_parms_id())
        self._encryptor = sealapi.Encryptor(context, _load(parameters, sealapi.PublicKey(), members))

    def encrypt(self, plaintext: Residues, scale: float) -> Residues:
        """A fresh encryption (2, limbs, N) of a plaintext (limbs, N), both in NTT form."""
        members = self._first + _PLAINTEXT.pack(plaintext.size, scale) + _array(plaintext)
        ciphertext = sealapi.Ciphertext()
        self._encryptor.encrypt(_load(self._parameters, sealapi.Plaintext(), members), ciphertext)
        shape = (2, len(self._parameters.data_primes), self._parameters.degree)
        return _residues(_members(ciphertext), _CIPHERTEXT_PREFIX, shape)


def decrypt(parameters: ParameterSet, secret: Residues, ciphertext: Residues) -> Residues:
    """SEAL's own decryption of a ciphertext (2 or 3, data limbs, N) to (limbs, N), to check ours against."""
    first = _parms_id(_context(parameters).first_parms_id())
    members = _ciphertext_members(first, ciphertext, parameters.template_scale)
    decryptor = sealapi.Decryptor(_context(parameters), _secret_object(parameters, secret))
    plaintext = sealapi.Plaintext()
    decryptor.decrypt(_load(parameters, sealapi.Ciphertext(), members), plaintext)
    return _residues(_members(plaintext), _PLAINTEXT_PREFIX, ciphertext.shape[1:])


class Rotor:
    """SEAL's own automorphisms, to check ours against and to time them beside it.

    Args:
        parameters: the parameter set.
        secret: the secret key (limbs, N) that makes the Galois keys.
        elements: the Galois elements.
    """

    def __init__(self, parameters: ParameterSet, secret: Residues, elements: list[int]) -> None:
        self._parameters = parameters
        self._keys = sealapi.GaloisKeys()
        generator = sealapi.KeyGenerator(_context(parameters), _secret_object(parameters, secret))
        generator.create_galois_keys(elements, self._keys)
        self._evaluator = sealapi.Evaluator(_context(parameters))
        self.keys = _galois_residues(parameters, self._keys)

    def load(self, ciphertext: Residues) -> Any:
        """A ciphertext (2, data limbs, N) as SEAL's object."""
        first = _parms_id(_context(self._parameters).first_parms_id())
        return _load(
            self._parameters, sealapi.Ciphertext(), _ciphertext_members(first, ciphertext, self._parameters.probe_scale)
        )

    def apply(self, ciphertext: Any, element: int) -> Any:
        """X -> x^element of SEAL's object."""
        turned = sealapi.Ciphertext()
        self._evaluator.apply_galois(ciphertext, element, self._keys, turned)
        return turned

    def plaintext(self, polynomial: Residues) -> Any:
        """A polynomial (data limbs, N) at scale 1 as SEAL's object."""
        first = _parms_id(_context(self._parameters).first_parms_id())
        members = first + _PLAINTEXT.pack(polynomial.size, 1.0) + _array(polynomial)
        return _load(self._parameters, sealapi.Plaintext(), members)

    def split(self, ciphertext: Any, element: int, shift: Any) -> tuple[Any, Any]:
        """C + c(x^element), and (c - c(x^element)) times a plaintext."""
        turned, even, odd = self.apply(ciphertext, element), sealapi.Ciphertext(), sealapi.Ciphertext()
        self._evaluator.add(ciphertext, turned, even)
        self._evaluator.sub(ciphertext, turned, odd)
        self._evaluator.multiply_plain_inplace(odd, shift)
        odd.scale = self._parameters.probe_scale
        return even, odd

    def residues(self, ciphertext: Any) -> Residues:
        """SEAL's object as residues (2, data limbs, N)."""
        shape = (2, len(self._parameters.data_primes), self._parameters.degree)
        return _residues(_members(ciphertext), _CIPHERTEXT_PREFIX, shape)
