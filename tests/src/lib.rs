//! Whole-cluster, fault, golden and tidiness tests.
