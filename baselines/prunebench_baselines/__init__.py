"""Rival methods and controls, one file per method."""
