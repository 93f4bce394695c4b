"""Benchmarks of lmms-eval behind PruneBench's evaluator hook; lmms-eval is imported here only, and only when it runs."""
