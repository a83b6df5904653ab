"""Solving the convex phase on cached features, and what comes of it."""
