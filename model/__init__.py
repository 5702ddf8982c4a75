"""Settings and everything computed from them, without Pulumi and without contacting a host."""
