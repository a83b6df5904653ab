"""SVHN: 73,257 + 26,032 house numbers, the digit in the middle counts.

python examples/svhn.py --help
"""

from data import ImageSet
from trainer import main

if __name__ == "__main__":
    main(ImageSet("svhn_cropped", padding=4, flip=False), epochs=60, learning_rate=0.05)
