"""A linear head on the student, from a few labels or from text vectors.

command: `tinkit head`; files: how a head is kept beside its run and put on for export.
"""
