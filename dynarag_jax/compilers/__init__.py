"""Compilers of machines that are not here: topologies, and what a compiled program costs."""
