"""The theory of Semantic Granularity Alignment, exact and estimated: group fields, interference, kernel, landscape."""
