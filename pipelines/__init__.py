"""Ray Data pipelines: photos to benchmark, images to features, features to rankings."""
