"""Attributes that stand in for others while a model is evaluated."""

import types

import pytest

from keras_dal.features.tracing import Swap, replaced


def test_a_swap_is_found_once_and_put_back_on_an_exception():
    instance, found = types.SimpleNamespace(call=1), []

    def doubled():
        found.append(instance.call)
        return replaced(instance, "call", 2 * instance.call)

    swap = Swap([(instance, "call"), (instance, "absent")], doubled)
    for _ in range(2):
        with swap.in_place():
            assert vars(instance) == {"call": 2}
        assert vars(instance) == {"call": 1}
    with pytest.raises(KeyError), swap.in_place():
        raise KeyError
    assert vars(instance) == {"call": 1}
    assert found == [1]


def test_a_swap_is_found_anew_where_what_it_stands_for_has_changed():
    instance = types.SimpleNamespace(call=1)
    swap = Swap([(instance, "call")], lambda: replaced(instance, "call", 2 * instance.call))
    with swap.in_place():
        pass
    instance.call = 5
    with swap.in_place():
        assert instance.call == 10
    assert instance.call == 5
