"""Helpers that the lab and the tools share: errors, paths, files, processes, progress."""
