"""The device side: generated C, the C11 runtime, artifacts on disk, and running them on this machine.

Flow: `Schedule` + kernel objects -> `codegen` (C text) -> `toolchain` (libraries, runner) -> `artifact` (NAME.bevel/) -> `host`
(through ctypes here) or `bevel.devices` (over SSH there).
"""
