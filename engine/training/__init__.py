"""Training of networks: patches of images, the training loop, and a file for each kind of network."""
