"""Pulumi resources: a component for each concept of the field, composed by `cluster`."""
