"""The intermediate representation: types, graph, op table, interpreter, verifier, text form.

Imports numpy and safetensors, and nothing of ours but the errors.
"""
