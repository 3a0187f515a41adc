"""The template's tests: they generate projects and run them."""
