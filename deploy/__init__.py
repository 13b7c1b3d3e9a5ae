"""Deployment: servers beside our own, and (later) containers, Kubernetes and dashboards."""
