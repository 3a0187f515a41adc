"""Months of production for `ml monitor`: clean ones, and each of the seeded changes."""
