"""A plan made into a checkpoint of its own, checked by loading it again in another process."""

from prunebench.exporting.pipeline import ExportReport, export

__all__ = ["ExportReport", "export"]
