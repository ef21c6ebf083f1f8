"""Tests of surgeon; a package, so that benchmarks can draw the same random networks."""
