"""Adapters to tools that the user has installed: any command, pyiqa, DPG-Bench. None is a dependency."""
