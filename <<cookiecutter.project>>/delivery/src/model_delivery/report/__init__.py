"""One form of verdict, and its renderings."""
