"""What ships: keys, digests, candidates, packages."""
