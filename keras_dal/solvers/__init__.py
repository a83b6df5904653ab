"""Least squares, Newton's method, interpolation and duality, for any head and any loss."""
