"""Measures the embedded server beside what else there is: ``python -m benchmarks --write``.

Parts of this package run in environments that lack ours (mem0's, Chroma's), so nothing is imported
here.
"""
