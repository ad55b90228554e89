"""Files: models and adapters of Hugging Face, GGUF and bitsandbytes, checkpoints, downloads.

Every number in a header is checked against the file before it is believed, and nothing is ever
unpickled. Read `safetensors_file.py` first, then `pretrained.py`, which opens a model by name.
"""
