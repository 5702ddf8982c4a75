"""Pulumi components, one for each concept (host, control plane, worker, ...), composed in `cluster`."""
