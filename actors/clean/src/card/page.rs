//! The card as one HTML page that needs no other file.

use std::fmt::Write;

use super::{Card, summary};
use crate::figures::Sample;

const STYLE: &str = "body{font:15px/1.55 system-ui,'Noto Sans','Noto Sans CJK SC',sans-serif;color:#1f2933;\
    max-width:760px;margin:2.5em auto;padding:0 1em}h1{font-size:1.7em}h2{font-size:1.2em;margin:2em 0 .6em}\
    dl{display:flex;flex-wrap:wrap;gap:.8em;margin:0}dl div{background:#f3f6f9;border-radius:8px;padding:.6em 1em;\
    min-width:9em}dt{color:#627282;font-size:.85em}dd{margin:0;font-size:1.25em;font-variant-numeric:tabular-nums}\
    svg{max-width:100%;height:auto;display:block;margin:1.6em 0}table{border-collapse:collapse;width:100%}\
    td{vertical-align:top;padding:.4em 1em .4em 0;border-top:1px solid #e1e7ed}td:first-child{white-space:nowrap}\
    td small{color:#627282;word-break:break-all}p{margin:0;white-space:pre-line}\
    pre{background:#f3f6f9;border-radius:8px;padding:1em;overflow:auto;font-size:.85em}code{word-break:break-all}";

pub(super) fn write(card: &Card<'_>) -> String {
    let stage = escape(card.stage);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Data card: {stage}</title>\n\
         <style>{STYLE}</style></head>\n<body><h1>Data card: {stage}</h1>\n<dl>\n"
    );
    for (name, count) in summary(card.figures) {
        let _ = writeln!(out, "<div><dt>{}</dt><dd>{count}</dd></div>", escape(&name));
    }
    out.push_str("</dl>\n");
    for table in &card.tables {
        let _ = writeln!(out, "{}", table.plot);
    }
    let refusals = card.figures.refusals.iter().map(|(reason, sample)| (reason.name(), "en", sample));
    samples(&mut out, "The first document rejected for each reason", refusals);
    let kept = card.figures.samples.iter();
    let kept = kept.map(|(language, sample)| (language.clone(), language.as_str(), sample));
    samples(&mut out, "The first document of each language", kept);
    let _ = write!(out, "<h2>Options</h2>\n<pre>{}</pre>\n<h2>Sources</h2>\n<ul>", escape(&card.options));
    for source in card.sources {
        let _ = writeln!(out, "<li><code>{}</code></li>", escape(source));
    }
    out.push_str("</ul></body></html>\n");
    out
}

/// A row a sample: its name, the language of its words, and the sample.
fn samples<'a>(
    out: &mut String,
    title: &str,
    samples: impl ExactSizeIterator<Item = (String, &'a str, &'a Sample)>,
) {
    if samples.len() == 0 {
        return;
    }
    let _ = writeln!(out, "<h2>{title}</h2>\n<table>");
    for (name, language, sample) in samples {
        let (name, url, words) = (escape(&name), escape(&sample.url), escape(&sample.words));
        let _ = writeln!(
            out,
            "<tr><td>{name}</td><td><p lang=\"{}\">{words}</p><small>{url}</small></td></tr>",
            escape(language)
        );
    }
    out.push_str("</table>\n");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
