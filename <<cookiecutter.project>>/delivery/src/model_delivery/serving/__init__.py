"""The service, its launcher and its scorer: what runs where a release is used."""
