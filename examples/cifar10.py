"""CIFAR-10: 50,000 + 10,000 color images of ten kinds of things.

python examples/cifar10.py --help
"""

from data import ImageSet
from trainer import main

if __name__ == "__main__":
    main(ImageSet("cifar10", padding=4, flip=True))
