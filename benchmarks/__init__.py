"""Side-by-side measurements; each module runs by `python -m benchmarks.<name>` and prints one JSON line last."""
