"""``python -m snnet_kernels``: what is loaded and which backend serves each operation."""

from . import backend_info

if __name__ == "__main__":
    print(backend_info())
