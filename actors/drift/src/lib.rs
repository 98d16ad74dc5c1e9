//! The drift-monitor role: what is asked against what was trained on.
