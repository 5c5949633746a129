"""The launcher `batched` and the sweeper `grid`. Hydra imports this at every start: JAX stays out of it."""
