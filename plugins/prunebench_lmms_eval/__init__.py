"""Benchmarks of lmms-eval behind the evaluator hook; lmms-eval is imported here alone, and only when it runs."""
