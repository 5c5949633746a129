"""Array aliases with their shapes, in the letters of docs/theory.md §1.

`n` is the data dimension, `m` the latent dimension, `k` the bottleneck. Importing this module
imports no JAX: the aliases check any array with a shape and a dtype.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from jaxtyping import Float, Key, Shaped

Array: TypeAlias = Any

#: `(W_1, …, W_N)`, first layer first, `W_j` of shape `(d_j, d_{j-1})`.
Weights: TypeAlias = tuple[Float[Array, "_ _"], ...]
#: The generator `W = W_N ⋯ W_1`, shape `(n, m)`.
EndToEnd: TypeAlias = Float[Array, "n m"]
#: Eigenvalues of a covariance, descending, shape `(n,)`.
Spectrum: TypeAlias = Float[Array, "n"]
#: An orthogonal basis, one vector a column, shape `(n, n)`.
Basis: TypeAlias = Float[Array, "n n"]
#: A covariance, shape `(n, n)`.
Covariance: TypeAlias = Float[Array, "n n"]
#: A number, traced or not.
Scalar: TypeAlias = float | Float[Array, ""]
#: A key of `jax.random`.
PRNGKey: TypeAlias = Key[Array, ""] | Shaped[Array, "2"]
#: `(d_0, …, d_N)`, latent dimension first, data dimension last.
Widths: TypeAlias = tuple[int, ...]
