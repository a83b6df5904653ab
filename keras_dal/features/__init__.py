"""From data to the features of a model, batch by batch, cached."""
