"""The tuner: which of a problem's kernels is the fastest on a device, measured there and remembered.

`workload` makes data that any kernel of a problem computes on, `program` the program that times a batch of kernels, `timing`
runs it on a device and judges what it says, `winners` looks up what was measured before, `tuner` decides what to measure and in
which order. `bevel.compiler` calls the last two.
"""
