"""Released benchmarks, one file each: annotation files → `base.Release`. `pipelines/importing.py` does the rest."""
