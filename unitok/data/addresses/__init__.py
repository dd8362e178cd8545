"""Data at addresses: files that are brought into a bounded cache, and data sets that are read from it."""
