from .deployments import build_app as build_app, serve_cluster as serve_cluster
from .gateway import connect as connect
from .settings import ClusterSettings as ClusterSettings, ModelSource as ModelSource, Replicas as Replicas
