"""Loop nests shared by every instruction set; the ISA folders supply their inner steps."""
