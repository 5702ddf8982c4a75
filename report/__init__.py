"""The report on a pull request: what `pulumi up` would do to each environment (docs/reviewing.md)."""
