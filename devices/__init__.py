"""Devices: profiles of boards, the transports that reach them, and an emulated board for tests and demos."""
