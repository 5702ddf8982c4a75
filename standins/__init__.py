"""Stand-ins for Pulumi's provider plugins, for machines that can't download the real ones."""
