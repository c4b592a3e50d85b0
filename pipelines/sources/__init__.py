"""Photo collections and released benchmarks, one file each."""
