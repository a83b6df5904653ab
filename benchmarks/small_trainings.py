"""What the benchmarks on a few thousand images train: a ResNet-8, and how it is optimized."""

import keras
import models

import keras_dal


def optimizer_of(recipe, epochs, steps, **kind):
    """Return a recipe's optimizer for so many epochs of so many steps."""
    schedules, total = keras.optimizers.schedules, epochs * steps
    if recipe == "adamw":
        warmup = min(3, epochs // 4) * steps
        rate = schedules.CosineDecay(0.0, total - warmup, warmup_target=2e-3, warmup_steps=warmup)
        return keras.optimizers.AdamW(rate, weight_decay=0.02, **kind)
    rate = schedules.CosineDecay(0.1, total)
    if recipe == "steps":
        rate = schedules.PiecewiseConstantDecay([total // 2, total * 3 // 4], [0.1, 0.01, 0.001])
    elif recipe == "constant":
        rate = 0.05
    elif recipe == "ema":
        kind = {"use_ema": True, "ema_momentum": 0.99, **kind}
    return keras.optimizers.SGD(rate, momentum=0.9, **kind)


def resnet8(images, num_classes, seed, augmentation=(0, False)):
    """Return a ResNet-8 for such images, behind layers that change them in training, as Keras' guides have it.

    Args:
        images: training images `(n, h, w, c)`, raw pixel values.
        num_classes: width of the logits.
        seed: of its weights.
        augmentation: by how many pixels images are shifted at most, and whether they are mirrored.
    """
    keras.utils.set_random_seed(seed)
    network, (padding, mirror) = models.build("resnet", 8, num_classes, images), augmentation
    if not padding:
        return network
    inputs = x = keras.Input(images.shape[1:])
    if mirror:
        x = keras.layers.RandomFlip("horizontal")(x)
    share = padding / images.shape[1]
    shift = keras.layers.RandomTranslation(share, share, fill_mode="constant", interpolation="nearest")
    return keras.Model(inputs, network(shift(x)))


def compiled(model, recipe, optimizer, seed, gated_samples=None):
    """Return the model compiled with the recipe's loss, with a gated head for so many samples where they are given."""
    if recipe == "smoothing":
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if gated_samples is not None:
        model.compile("sgd", loss)
        model = keras_dal.add_gated_head(model, num_samples=gated_samples, seed=seed, verbose=False)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model
