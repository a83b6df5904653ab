"""Keras models: where they are linear, gated layers, and copies with another head."""
