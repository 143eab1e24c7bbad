"""A teacher becomes a student: pictures in, a run's folder out.

command: `tinkit distill`; prepare: everything before training; loop: training itself; finish: what is written at the end.
"""
