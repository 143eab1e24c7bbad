"""The board, seen from the workstation: an agent of one file goes over ssh, and what comes back is believed only so far.

run: the road of `tinkit profile --host`; matrix: several targets and power modes; tinkit/device is what runs there.
"""
