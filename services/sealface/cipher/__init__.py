"""The cryptography: the only code of the project that imports tenseal.

- `parameters`: sets of CKKS parameters, each checked against the security table
- `ring`: number-theoretic transform in SEAL's order (numpy), and its fast twin in `kernels` (numba)
- `randomness`: everything random that is not drawn by SEAL itself
- `wire`: residues as bytes, packed at the width of their prime and range-checked
- `seal`: TenSEAL's sealapi: key generation, encryption; SEAL's streams, written by us
- `layout`: where the elements of a vector and the scores of a block lie in polynomials
- `product`: the scoring kernel
- `switching`: automorphisms, and the tree that expands probes and seals blocks
- `zeros`: single-use encryptions of zero, drawn ahead
- `evaluator`: compute's side: blocks of templates, expanded probes, masked and randomised results
- `opening`: the key holder's side: results to scores
- `distance`: scores to distances
- `scheme`: the interface of the above that services use, and its CKKS implementation
"""
