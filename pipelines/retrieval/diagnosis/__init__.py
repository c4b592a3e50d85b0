"""What kind of mistakes a model makes, what they go along with, and where two models differ."""
