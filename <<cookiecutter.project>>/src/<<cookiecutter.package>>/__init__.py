"""The model of <<cookiecutter.project>>: its sources, features, parameters and service."""
