"""From files to updates: pixels, captions, buckets, tuples, caches."""
