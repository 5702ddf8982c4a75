"""Helpers shared by the program's lab, tools and tests: errors, paths, files, processes, progress."""
