//! The kernels' sources.

/// What a source may include: it stands before every one.
pub(super) const HEADERS: [&str; 3] = [
    include_str!("kernels/prelude.cuh"),
    include_str!("kernels/math.cuh"),
    include_str!("kernels/attention.cuh"),
];

/// Sources by name; each is compiled when one of its kernels is first asked for.
pub(super) const SOURCES: [(&str, &str); 14] = [
    ("activation", include_str!("kernels/activation.cu")),
    ("adamw", include_str!("kernels/adamw.cu")),
    ("attention", include_str!("kernels/attention.cu")),
    ("attention_backward", include_str!("kernels/attention_backward.cu")),
    ("bias", include_str!("kernels/bias.cu")),
    ("compressed", include_str!("kernels/compressed.cu")),
    ("elementwise", include_str!("kernels/elementwise.cu")),
    ("dropout", include_str!("kernels/dropout.cu")),
    ("embedding", include_str!("kernels/embedding.cu")),
    ("loss", include_str!("kernels/loss.cu")),
    ("norm", include_str!("kernels/norm.cu")),
    ("product", include_str!("kernels/product.cu")),
    ("rope", include_str!("kernels/rope.cu")),
    ("sum", include_str!("kernels/sum.cu")),
];

/// A source with what stands before it.
///
/// # Panics
/// There is no source of this name.
pub(super) fn source(name: &str) -> String {
    let found = SOURCES.iter().find(|(known, _)| *known == name);
    let (_, source) = found.unwrap_or_else(|| panic!("there are no kernels `{name}`"));
    format!("{}\n{}", headers(), without_includes(source))
}

/// All headers.
pub(super) fn headers() -> String {
    HEADERS.map(without_includes).concat()
}

/// A source without the lines that include our headers: neither compiler is given files.
pub(super) fn without_includes(source: &str) -> String {
    let ours = |line: &&str| line.starts_with("#include \"") || *line == "#pragma once";
    source.lines().filter(|line| !ours(line)).flat_map(|line| [line, "\n"]).collect()
}
