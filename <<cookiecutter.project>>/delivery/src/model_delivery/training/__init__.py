"""From the source to a candidate: extract, split, fit, measure."""
