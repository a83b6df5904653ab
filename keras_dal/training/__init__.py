"""Training in two phases: the optimizer, what drives it, and what is measured meanwhile."""
