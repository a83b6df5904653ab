"""MNIST: 60,000 + 10,000 handwritten digits.

python examples/mnist.py --help
"""

from data import ImageSet
from trainer import main

if __name__ == "__main__":
    main(ImageSet("mnist", padding=2, flip=False), epochs=20, learning_rate=0.05)
