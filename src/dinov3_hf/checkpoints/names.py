"""Names of layouts, files and layers, which flags and recipes offer before any weight is read."""

# What `export` writes.
LAYOUTS = ("transformers", "meta", "timm", "onnx")
# Endings of files of weights that are read.
WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")
# Linear layers of a block that get adapters, as regular expressions of the ends of their names.
TARGET_MODULES = ("[qkvo]_proj", "(gate|up|down)_proj")
