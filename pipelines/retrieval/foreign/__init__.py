"""Models that are not ours, asked as they are: image and text → vector, ranked by the same engine."""
