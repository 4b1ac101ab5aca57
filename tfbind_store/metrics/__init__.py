"""How good scores are, in numbers: ranking, reliability, intervals, medians."""
