"""Stand-ins for Pulumi's provider plugins, for systems that can't download the real ones."""
