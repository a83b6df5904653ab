"""Fashion-MNIST: 60,000 + 10,000 pieces of clothing in gray.

python examples/fashion_mnist.py --help
"""

from data import ImageSet
from trainer import main

if __name__ == "__main__":
    main(ImageSet("fashion_mnist", padding=2, flip=True), epochs=60)
