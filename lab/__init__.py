"""The lab: local virtual machines, with a package and image mirror as in an air-gapped network."""
