//! A small web site of generated pages, served on loopback by the test itself.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Words of the generated sentences.
const WORDS: [&str; 48] = [
    "the",
    "node",
    "keeps",
    "a",
    "copy",
    "of",
    "each",
    "shard",
    "and",
    "model",
    "learns",
    "from",
    "pages",
    "that",
    "people",
    "wrote",
    "about",
    "rivers",
    "mountains",
    "machines",
    "language",
    "with",
    "steps",
    "in",
    "order",
    "when",
    "coordinator",
    "places",
    "ranks",
    "on",
    "hosts",
    "to",
    "sum",
    "gradients",
    "be",
    "have",
    "which",
    "answers",
    "questions",
    "by",
    "night",
    "or",
    "day",
    "for",
    "every",
    "token",
    "reads",
    "slowly",
];

/// A running site; its thread ends with the process.
pub struct Site {
    address: SocketAddr,
}

impl Site {
    /// Serves `pages` pages of `paragraphs` paragraphs (680 bytes each) that link to each other as a tree; each
    /// answer takes `delay`.
    pub fn start(pages: usize, paragraphs: usize, delay: Duration) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || serve(stream, pages, paragraphs, delay));
            }
        });
        Self { address }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The address of its first page.
    pub fn seed(&self) -> String {
        format!("http://{}/page/1.html", self.address)
    }
}

/// Answers requests on one connection until the client closes it.
fn serve(stream: TcpStream, pages: usize, paragraphs: usize, delay: Duration) {
    let Ok(mut out) = stream.try_clone() else { return };
    let mut lines = BufReader::new(stream).lines();
    while let Some(Ok(request)) = lines.next() {
        while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        std::thread::sleep(delay);
        let path = request.split(' ').nth(1).unwrap_or_default();
        let number = path.strip_prefix("/page/").and_then(|rest| rest.strip_suffix(".html")?.parse().ok());
        let (status, body) = match number {
            Some(number) if (1..=pages).contains(&number) => ("200 OK", page(number, pages, paragraphs)),
            _ => ("404 Not Found", String::new()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        if out.write_all(head.as_bytes()).and_then(|()| out.write_all(body.as_bytes())).is_err() {
            return;
        }
    }
}

/// A page of some paragraphs that no other page has.
fn page(number: usize, pages: usize, paragraphs: usize) -> String {
    let mut state = number as u64;
    let mut next = |bound: usize| {
        // Knuth's MMIX generator: any fixed sequence will do.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let mut text = String::new();
    for _ in 0..paragraphs {
        text += "<p>";
        for _ in 0..5 {
            let words: Vec<&str> = (0..12).map(|_| WORDS[next(WORDS.len())]).collect();
            text += &format!("{}. ", words.join(" "));
        }
        text += "</p>\n";
    }
    let links = [2 * number, 2 * number + 1].into_iter().filter(|&link| link <= pages);
    let links: String = links.map(|link| format!("<a href=\"/page/{link}.html\">page {link}</a> ")).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><title>Page {number}</title><main>\n{text}</main><nav>{links}</nav></html>\n"
    )
}
