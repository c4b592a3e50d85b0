"""`oacir reproduce`: the paper's ablation matrix on a benchmark of one's own, held against the paper's orderings."""
