"""The top-k gather as a TensorRT plugin, in C++ and in Python."""
