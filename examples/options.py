"""The command line of the examples."""

import argparse

import models
import strategies


def parse(name, **defaults):
    """Return the options of one example as a namespace.

    Args:
        name: name of the data set.
        defaults: values by option where they differ from those of CIFAR-10.
    """
    parser = argparse.ArgumentParser(
        description=f"Train a residual network on {name}: explore with SGD, then finish the convex rest.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    data = parser.add_argument_group("images")
    data.add_argument("--data-dir", help="folder of sets prepared by tensorflow-datasets")
    data.add_argument("--manual-dir", help="folder with the set's archives, fetched by hand")
    data.add_argument("--subset", type=_positive, help="train on the first so many images")
    network = parser.add_argument_group("network")
    network.add_argument("--model", choices=models.NAMES, default="resnet")
    network.add_argument("--depth", type=_depth, default=20, help="of the CIFAR ResNet: 8, 20, 32, 44, 56, 110")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=int, default=200)
    training.add_argument("--batch-size", type=_positive, default=128, help="images per step and device")
    training.add_argument("--learning-rate", type=float, default=0.1, help="for 128 images per step; grows with them")
    training.add_argument("--schedule", choices=("cosine", "step"), default="cosine")
    training.add_argument("--explore", type=_explore, default="auto", help="share of the epochs, their number, or auto")
    training.add_argument("--seed", type=int, nargs="+", default=[0], help="one run each")
    training.add_argument("--compare", action="store_true", help="train with the optimizer alone, too")
    training.add_argument("--mixed-precision", action="store_true", help="compute in float16")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--strategy", choices=strategies.NAMES, default="default")
    machine.add_argument(
        "--logical-cpus",
        type=_positive,
        help="split the CPU for --strategy mirrored, to try it without GPUs; on TensorFlow alone, nothing otherwise",
    )
    machine.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits in every run, slower; of what TensorFlow computes: JAX and PyTorch are left as they are",
    )
    results = parser.add_argument_group("results")
    results.add_argument("--run-dir", default=f"runs/{name}", help="folder for all that is written")
    results.add_argument("--resume", action="store_true", help="go on in that folder")
    results.add_argument(
        "--converge",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="after training on one device, finish a copy of the network on clean images, too; minutes",
    )
    results.add_argument(
        "--certify", action=argparse.BooleanOptionalAction, default=True, help="certify the head at the end; minutes"
    )
    parser.set_defaults(dataset=name, **defaults)
    settings = parser.parse_args()
    explored = _explored(settings)
    if not 0 < explored < settings.epochs:
        parser.error(
            f"both phases need at least one epoch, and {explored} of {settings.epochs} would explore. "
            f"Received: --epochs {settings.epochs} --explore {settings.explore}"
        )
    return settings


def _explored(settings):
    """Return how many epochs would explore, 1 at least where that is measured."""
    if settings.explore == "auto":
        return 1
    return settings.explore if isinstance(settings.explore, int) else round(settings.explore * settings.epochs)


def _positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1. Received: {text}")
    return number


def _depth(text):
    try:
        return models.checked_depth(int(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from None


def _explore(text):
    if text == "auto":
        return text
    explore = float(text) if "." in text else int(text)
    if explore <= 0 or (isinstance(explore, float) and explore >= 1):  # by itself: TensorFlow has no devices yet
        raise argparse.ArgumentTypeError(f"a share between 0 and 1, a number of epochs, or auto. Received: {text}")
    return explore
