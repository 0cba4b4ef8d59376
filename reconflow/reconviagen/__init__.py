"""ReconViaGen v0.2: from views of one object to Gaussians and a mesh by generative networks, in plain PyTorch."""
