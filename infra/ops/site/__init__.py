"""A small production set-up of this machine: S3, MLflow and a Ray cluster as plain processes."""
