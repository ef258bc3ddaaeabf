"""Question files of other projects in and out, the benchmarks by name, prepared datasets."""
