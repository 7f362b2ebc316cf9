"""Measurements: each module is one table; what they share is in harness."""
