"""Accelerations: each may be deleted, and everything still works."""
