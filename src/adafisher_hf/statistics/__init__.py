"""Hooks → sums over tokens: what every layer of a model has seen since the last refresh."""
