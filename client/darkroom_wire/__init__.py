"""The contract between Darkroom's parts, as code.

Job documents, options, problems, and tensors as bytes. Everything may import this package; it
imports nothing of ours, and nothing outside the standard library but pydantic.
"""
