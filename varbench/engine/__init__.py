"""Executes plans: the generation loop with its caches, and the teacher-forced pass."""
