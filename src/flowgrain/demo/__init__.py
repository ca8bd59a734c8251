"""The main job on the embedded bundle: decompose, train two arms for the same budget, sample, measure, report."""
