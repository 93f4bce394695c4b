"""Training of the testbed model from nothing: ``python -m prunebench_models.testbed.train --out DIR``."""
