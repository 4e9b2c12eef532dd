"""fastdream: world-model reinforcement learning, fast because of its kernels."""

from pkgutil import extend_path

__version__ = "0.1.0"

# Python started in a clone finds the clone's folder first: the compiled module of the installed copy still counts.
__path__ = extend_path(__path__, __name__)
