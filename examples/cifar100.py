"""CIFAR-100: 50,000 + 10,000 color images of a hundred kinds of things.

python examples/cifar100.py --help
"""

from data import ImageSet
from trainer import main

if __name__ == "__main__":
    main(ImageSet("cifar100", padding=4, flip=True))
