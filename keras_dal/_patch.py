"""Attributes of an instance, replaced for a while."""

import contextlib


@contextlib.contextmanager
def replaced(instance, name, value):
    """Lets `instance.name` be `value` inside the context, and what it was before afterwards, on an exception too.

    The instance's dictionary is written directly: Keras' and TensorFlow's attribute tracking must not see this.
    """
    attributes = vars(instance)
    absent = object()
    before = attributes.get(name, absent)
    attributes[name] = value
    try:
        yield
    finally:
        if before is absent:
            del attributes[name]
        else:
            attributes[name] = before
