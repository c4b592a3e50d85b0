"""The model as MLflow keeps it: this file is copied beside the weights and run to load them. No pickle anywhere."""

from mlflow.models import set_model

from infra.ops.registry.retriever import Retriever

set_model(Retriever())
