"""Strict settings for every test: float64, no silent rank promotion, warnings are errors."""

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

from hypothesis import settings  # noqa: E402

# Examples compile programs now and then, so no deadline; derandomized, so that a failure is one
# that the code earned and that everybody can repeat.
settings.register_profile("bwdln", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("bwdln")
