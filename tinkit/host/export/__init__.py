"""A run becomes a bundle: ONNX, precision written into the graph, the host gate and healing.

command: `tinkit export`; settle: calibrate, write, judge, heal; every other module is one step or one kind of proof.
"""
