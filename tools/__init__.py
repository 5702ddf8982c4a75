"""Command-line tools: running Pulumi with its plugins, `make up` and `make down`, checks and pages."""
