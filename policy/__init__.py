"""The policy pack: what a reviewer would otherwise check by hand in every preview (docs/policy.md)."""
