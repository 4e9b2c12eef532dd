"""fastdream: world-model reinforcement learning, fast because of its kernels."""

__version__ = "0.1.0"
