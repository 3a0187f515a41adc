"""How a release reaches an environment, and how the one before it comes back."""
