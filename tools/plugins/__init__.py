"""Stand-ins for provider plugins that can't be downloaded everywhere, and how plugins are found."""
