"""Small sets of photos: every instance is asked once, by a model that was not trained on it."""
