//! All-reduce, gather and point-to-point exchange in a fixed order.
