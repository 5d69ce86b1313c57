"""fastce beside the other packages that are installed: `python -m bench.peers`."""
