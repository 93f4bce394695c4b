"""What a model costs: parameters, bytes and FLOPs by counting; latency and memory by measuring."""
