"""The command `ml`."""
