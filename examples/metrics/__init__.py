"""Metrics on top of ``evaluate`` that need no download."""
