"""What the user promises of data, parameters, limits and environments, read strictly."""
