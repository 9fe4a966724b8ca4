"""Our own kernels for processors: C++ sources, the library built from them, and a torch twin of each."""
