"""What differs between the Keras backends, one module each."""
