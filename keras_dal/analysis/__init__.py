"""What is known about a head and its data: alignment, separability, bounds, certificates."""
