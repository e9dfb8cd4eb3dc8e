"""Attention networks for glioma segmentation in brain MRI."""

__version__ = "0.1.0"
