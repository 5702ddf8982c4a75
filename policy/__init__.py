"""The policy pack: what a reviewer would look for by hand, asked of every preview (docs/policy.md)."""
