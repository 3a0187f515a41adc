"""Rollouts of bad releases beside a good one, under the eyes of a client that counts."""
