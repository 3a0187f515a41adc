"""The machinery that tests, packages, deploys and reports on a machine-learning model."""
