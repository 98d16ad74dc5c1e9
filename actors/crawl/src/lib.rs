//! The crawler role: web sites to WARC.
