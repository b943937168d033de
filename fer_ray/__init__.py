"""Facial expression recognition on Ray, from images to a report that can be trusted."""

__version__ = "0.1.0"
