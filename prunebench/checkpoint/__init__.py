"""Checkpoint folders: reading them without the layers that a plan removes."""

from prunebench.checkpoint.files import Checkpoint, TensorEntry, read_json
from prunebench.checkpoint.loading import dense_info, input_device, load_pretrained, meta_model

__all__ = ["Checkpoint", "TensorEntry", "dense_info", "input_device", "load_pretrained", "meta_model", "read_json"]
