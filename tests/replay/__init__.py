"""The year 2013 asked, labelled, watched and retrained month by month; run by `make replay`."""
