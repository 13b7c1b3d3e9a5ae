"""Deployment: servers beside our own, a demonstration on them, and (later) containers, Kubernetes and dashboards."""
