"""Divergences between a teacher's and a student's next-token distributions, and the student's head with them in it."""
