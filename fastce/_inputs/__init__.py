"""From what a user passes to what a kernel takes, for arrays on the host and on a GPU."""
