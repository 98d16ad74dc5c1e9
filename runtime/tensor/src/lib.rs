//! Kernels of the engine (the only user of cudarc) and the fixed order of their additions.
