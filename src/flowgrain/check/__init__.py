"""``flowgrain check``: what a data set or recipe amounts to, and every problem, before a GPU second is spent."""
