"""What happens to a model when the box, the text or the reference of its queries is worse than in the benchmark."""
