"""The lab: local virtual machines, packages and images, as an air-gapped site has them."""
