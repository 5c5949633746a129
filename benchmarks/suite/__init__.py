"""Our computations beside those of others, in one run, on the same inputs: `python -m benchmarks.suite`."""
