"""What the benchmarks on a few thousand images are about: sets, recipes and the size of a batch; without Keras."""

SETS = {  # padding, mirror images, epochs
    "cifar10": (4, True, 60),
    "cifar100": (4, True, 60),
    "svhn_cropped": (4, False, 60),
    "fashion_mnist": (2, True, 30),
}
RECIPES = ("sgd", "adamw", "steps", "constant", "smoothing", "ema")
BATCH = 128
