"""Other storage for weights than NF4, and the quantization of whole models.

Each storage is a frozen dataclass of codes and scales with a method `dequantize`. Read `int8.py`
first, then `schemes.py`, which quantizes a model and reports the error per weight.
"""
