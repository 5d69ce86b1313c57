"""Backends, threads and other settings of the process."""
