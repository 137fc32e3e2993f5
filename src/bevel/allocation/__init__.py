"""Bit allocation: how many bits each layer gets on a device, by what its kernels take.

In: a plan that leaves bits to the device ("auto-lowbit"), the float model, a device profile and its tuner. Out: an ordinary plan
that names the layers of few bits, and for every layer what was weighed and why it was refused. `layers` finds the layers and what
is asked of each, `costs` what they take at each precision, `choice` chooses, `reasons` puts refusals into words, `allocate` is
the road.
"""
