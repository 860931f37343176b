"""A report of an output: one HTML page by itself, with pictures, measures, times and how to reproduce it."""
