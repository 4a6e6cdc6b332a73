"""Benchmarks: each module measures one thing and writes its result file, such as QUALITY.md for ``benchmarks.quality``.

Run one from the root of the repository, with nothing else running: ``python -m benchmarks.quality``.
"""
