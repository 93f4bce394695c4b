"""One adapter for every family of transformers models: a row per family, the rest follows from the model itself."""
