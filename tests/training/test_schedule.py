"""When exploration ends by default: it looks at the alignment once, and averages what it explores last."""

import keras
import numpy as np
import pytest
from fits import NUM_CLASSES, compiled, images, small_model

import keras_dal
from keras_dal.training import convex_phase
from keras_dal.training.schedule import ENOUGH, Decision, SwitchSchedule
from keras_dal.training.state import state_of

EPOCHS, LOOK, EARLY, LATE = 22, 13, 16, 18
X, Y = images()
CLEAR = X + 2 * np.eye(8, dtype="float32")[2 * Y][:, :, None, None], Y  # stripes that any initial weights learn
RANDOM = X, np.random.default_rng(5).integers(0, NUM_CLASSES, len(X))  # labels in no column space


def wrapped(**options):
    model = small_model(dropout=0.0)
    return compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1, momentum=0.9), **options), model)


class Kept(keras.callbacks.Callback):
    """Saves the model at the end of some epochs, and notes after each how many steps were averaged."""

    def __init__(self, folder=None, epochs=()):
        super().__init__()
        self.folder, self.epochs, self.averaged = folder, epochs, []

    def on_epoch_end(self, epoch, logs=None):
        self.averaged.append(self.model.optimizer.averaged_steps)
        if epoch + 1 in self.epochs:
            self.model.save(self.folder / f"{epoch + 1}.keras")


def trained(model, data, initial_epoch=0, callbacks=(), verbose=False, monitor_first=True):
    monitor = [keras_dal.AlignmentMonitor(verbose=verbose)]
    callbacks = [*monitor, *callbacks] if monitor_first else [*callbacks, *monitor]
    options = {"batch_size": 32, "epochs": EPOCHS, "verbose": 0, "shuffle": False, "initial_epoch": initial_epoch}
    return model.fit(*data, callbacks=callbacks, **options).history


@pytest.mark.parametrize(("data", "end"), [(CLEAR, EARLY), (RANDOM, LATE)], ids=["aligned", "unaligned"])
def test_exploration_is_longer_where_little_of_the_labels_is_in_the_column_space(data, end, capsys):
    kept = Kept()
    history = trained(wrapped(), data, callbacks=[kept], verbose=True)
    assert history["phase"].index(1) == end
    assert (history["alignment"][LOOK - 1] < ENOUGH) == (end == LATE)
    assert ("which is little: exploration goes on to the end of epoch 18" in capsys.readouterr().out) == (end == LATE)
    window = 1  # 7 % of 16 and of 18 epochs, rounded
    assert kept.averaged[:end] == [3 * max(0, epoch + 1 - end + window) for epoch in range(end)]  # three steps each


@pytest.mark.parametrize(("epochs", "averaged"), [(60, [40, 41, 42]), (200, [*range(132, 142)]), (8, [5])])
def test_by_default_the_last_fourteenth_of_the_explored_epochs_is_averaged_and_one_at_least(epochs, averaged):
    schedule = SwitchSchedule("auto", keras_dal.Wrap("sgd").average, epochs)
    assert [epoch for epoch in range(epochs) if schedule.average_is_due(epoch)] == averaged


@pytest.mark.parametrize("average", [0.07, 0.15, 0.2, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("epochs", [2, 5, 20, 60, 200])
@pytest.mark.parametrize("alignment", [0.0, 1.0])
def test_the_average_is_its_share_of_the_exploration_whenever_that_ends(average, epochs, alignment):
    schedule, averaged = SwitchSchedule("auto", average, epochs), 0
    for epoch in range(epochs):
        if schedule.is_due(epoch):
            break
        averaged = averaged + 1 if schedule.average_is_due(epoch) else 0
        if schedule.decides_after(epoch):
            schedule.decide(alignment)
    assert schedule.switch == epoch
    assert averaged == max(1, round(average * schedule.switch)) or schedule._begin == 0


@pytest.mark.parametrize(
    ("options", "first"), [({}, True), ({}, False), ({"average": 0}, True), ({"finish": "descend"}, False)], ids=str
)
def test_a_fit_that_is_resumed_decides_as_the_one_that_was_not(tmp_path, options, first):
    epochs = LOOK, LOOK + 1, EARLY, LATE - 1
    model, kept = wrapped(**options), Kept(tmp_path, epochs)
    history = trained(model, RANDOM, callbacks=[kept], monitor_first=first)
    for epoch in epochs:
        resumed = keras.saving.load_model(tmp_path / f"{epoch}.keras")
        assert trained(resumed, RANDOM, epoch)["phase"] == history["phase"][epoch:]
        for ours, expected in zip(resumed.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(("epoch", "end"), [(LOOK - 1, EARLY), (LOOK, LATE)])
def test_what_was_decided_is_not_decided_again(epoch, end):
    schedule = SwitchSchedule("auto", keras_dal.Wrap("sgd").average, EPOCHS)
    schedule.resume(epoch, Decision.LATEST)
    assert schedule.switch == end
    assert schedule.decides_after(epoch) == (end == EARLY)


def test_a_new_optimizer_counts_from_the_epoch_it_begins_with_and_is_resumed_so(tmp_path):
    """As where a second stage of training begins with initial_epoch."""
    model, kept = wrapped(), Kept(tmp_path, [14])
    history = trained(model, CLEAR, initial_epoch=10, callbacks=[kept])
    assert history["phase"] == [0] * 9 + [1]  # 71 % of the twelve that are left
    assert kept.averaged[:9] == [0] * 8 + [3]
    resumed = keras.saving.load_model(tmp_path / "14.keras")
    assert trained(resumed, CLEAR, 14)["phase"] == history["phase"][4:]
    for ours, expected in zip(resumed.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, expected)
    again = wrapped()
    again.optimizer.build(again.trainable_variables)
    again.optimizer.set_weights(resumed.optimizer.variables)
    assert state_of(again.optimizer).began_with(12) == 10
    began = [state_of(again.optimizer).began_with(epoch) for epoch in (2, 12)]
    assert began == [0, 0]  # after a fit from an epoch before that


def test_a_training_that_goes_on_after_restart_explores_as_one_that_begins_there():
    model = wrapped()
    assert trained(model, RANDOM)["phase"].index(1) == LATE
    model.optimizer.restart()
    assert state_of(model.optimizer).auto.value == Decision.NONE
    options = {"initial_epoch": EPOCHS, "epochs": EPOCHS + 10, "verbose": 0}
    more = model.fit(*CLEAR, callbacks=[keras_dal.AlignmentMonitor(verbose=0)], **options).history
    assert len(more["phase"]) - 1 in (7, 8)  # 71 or 80 % of the ten, whatever was decided before
    assert more["phase"][-2:] == [0, 1]


def test_a_decision_moves_no_switch_of_a_fit_that_has_none_to_take():
    for schedule in (SwitchSchedule.never(), SwitchSchedule.begun(0.07, 40, 0, 16)):
        before = vars(schedule).copy()
        assert schedule.resume(16, Decision.LATEST) == Decision.LATEST
        assert vars(schedule) == before


def test_what_a_fit_has_decided_holds_for_none_that_begins_before_it_would_decide():
    for epoch, holds in ((0, Decision.NONE), (LOOK - 1, Decision.NONE), (LOOK, Decision.LATEST)):
        schedule = SwitchSchedule("auto", 0.07, EPOCHS)
        assert schedule.resume(epoch, Decision.LATEST) == holds
        assert schedule.switch == (LATE if holds else EARLY)


def test_one_epoch_that_is_left_is_the_second_phase():
    model = wrapped()
    with pytest.warns(UserWarning, match="has taken no step.*one epoch is left, and each phase needs one"):
        assert trained(model, CLEAR, initial_epoch=EPOCHS - 1)["phase"] == [1]


@pytest.mark.parametrize("explore", [0.25, 3])
def test_an_optimizer_that_would_train_nothing_says_so(explore):
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=explore))
    with pytest.warns(UserWarning, match="has taken no step.*Received: explore=.*, initial_epoch=10"):
        trained(model, images(), initial_epoch=10)


def test_where_the_alignment_is_not_known_exploration_ends_at_its_earliest():
    gated = keras_dal.GatedDense(6, gates="learned")
    inputs = keras.Input(RANDOM[0].shape[1:])
    outputs = keras.layers.Dense(NUM_CLASSES)(gated(keras.layers.Flatten()(inputs)))
    model = compiled(keras_dal.Wrap("sgd", finish="descend"), keras.Model(inputs, outputs))
    history = trained(model, RANDOM)
    assert "alignment" not in history
    assert history["phase"].index(1) == EARLY


@pytest.mark.parametrize("explore", ["auto", 0.01, 0.75, 0.99])
def test_shares_of_few_epochs_leave_one_to_each_phase(explore):
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=explore))
    history = model.fit(*RANDOM, epochs=2, verbose=0, callbacks=[keras_dal.AlignmentMonitor(verbose=False)]).history
    assert history["phase"] == [0, 1]


class Counts(keras.callbacks.Callback):
    """Notes how many steps are averaged after each epoch, and interrupts an epoch that reads the data."""

    def __init__(self, interrupts=None):
        super().__init__()
        self.interrupts, self.averaged = interrupts, []

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1 and (logs or {}).get("phase") == 1 and self.interrupts:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        self.averaged.append(self.model.optimizer.averaged_steps)


def fails(*_):
    raise MemoryError("there is no room")


def averaged_where_solving_fails(monkeypatch, interrupts):
    """Return the steps averaged after each epoch of a fit that cannot solve; perhaps one interrupted, and resumed."""
    monkeypatch.setattr(convex_phase, "solve_head", fails)
    model, counts = wrapped(explore=2, average=0.5), Counts(interrupts)
    if interrupts:
        with pytest.raises(KeyboardInterrupt):
            trained(model, CLEAR, callbacks=[counts])
        assert model.optimizer.phase == "exploit"
        counts.interrupts = None
    with pytest.warns(UserWarning, match="second phase could not begin"):
        trained(model, CLEAR, len(counts.averaged), [counts])
    return counts.averaged


def test_a_solve_that_fails_in_a_fit_that_was_resumed_averages_the_last_epochs_as_in_one_that_was_not(monkeypatch):
    expected = averaged_where_solving_fails(monkeypatch, interrupts=False)
    assert expected[-1] == 3 * EPOCHS // 2
    assert averaged_where_solving_fails(monkeypatch, interrupts=True) == expected


def test_a_fit_that_begins_in_the_second_phase_reads_again_once_after_an_incomplete_epoch(monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        trained(model := wrapped(explore=2), CLEAR, callbacks=[Counts(interrupts=True)])
    monitor, end, tried = keras_dal.AlignmentMonitor(verbose=0), convex_phase.ConvexPhase.end, []

    def at_second(phase, expected):
        tried.append(phase.averaged_steps)
        end(phase, expected if len(tried) > 1 else np.inf)

    monkeypatch.setattr(convex_phase.ConvexPhase, "end", at_second)
    with pytest.warns(UserWarning, match="next one reads them again"):
        history = model.fit(*CLEAR, epochs=EPOCHS, initial_epoch=2, verbose=0, callbacks=[monitor])
    assert tried == [3, 3]  # what was averaged before the interrupt
    assert history.epoch == [2, 3]
    assert monitor.result.reached
