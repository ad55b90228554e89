"""Other ways to store a weight than NF4, and which weight is stored how.

Each storage is a frozen dataclass of codes and scales with a plain `dequantize`. Read `int8.py`
first, then `schemes.py`, which stores a whole model and reports the error per weight.
"""
