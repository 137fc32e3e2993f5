"""Boards without hardware: whole systems under qemu, the Debian image they boot, and the names one starts boards by."""
