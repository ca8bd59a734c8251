"""The blind human study: a sealed plan, a web server that knows no variant, and results that un-blind after the end.

The server's modules (``assignment``, ``plan``, ``seal``, ``database``, ``store``, ``conduct``, ``limits``, ``server``)
import neither torch nor the comparison, and nothing in the files that they read names a variant.
"""
