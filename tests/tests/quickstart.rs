//! The README's first command, on real documentation behind a real web server, and on the site in
//! the binary.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sixfold_tests::{Process, Running, alone};

const HANDBOOK: &str = "/usr/share/doc/debian-handbook/html";
const LANGUAGES: [&str; 3] = ["zh-CN", "zh-TW", "en-US"];

/// nginx on loopback, ended when dropped.
struct Nginx {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Nginx {
    /// Serves the handbook; none where it or nginx is not installed.
    fn serve_handbook() -> Option<Self> {
        if !Path::new(HANDBOOK).exists() {
            println!("skipped: the package debian-handbook is not installed");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let links = LANGUAGES.map(|language| {
            std::os::unix::fs::symlink(Path::new(HANDBOOK).join(language), root.join(language)).unwrap();
            format!("<a href=\"/{language}/index.html\">{language}</a>")
        });
        std::fs::write(root.join("index.html"), format!("<!doctype html><p>{}</p>", links.join(" ")))
            .unwrap();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let (dir, root) = (folder.path().display(), root.display());
        let config = format!(
            "daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log;\n\
             events {{}}\n\
             http {{ include /etc/nginx/mime.types; access_log off; client_body_temp_path {dir}; proxy_temp_path {dir};\n\
             fastcgi_temp_path {dir}; uwsgi_temp_path {dir}; scgi_temp_path {dir};\n\
             server {{ listen {free}; charset utf-8; root {root}; }} }}\n"
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, config).unwrap();
        let started = Command::new("nginx").arg("-c").arg(&file).stderr(Stdio::null()).spawn();
        let Ok(child) = started else {
            println!("skipped: nginx is not installed");
            return None;
        };
        let nginx = Self { child, address: free, _folder: folder };
        let since = Instant::now();
        while TcpStream::connect(nginx.address).is_err() {
            assert!(since.elapsed() < Duration::from_secs(10), "nginx does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn check(result: &Value, pages_min: u64) {
    let count = |name: &str| result[name].as_u64().unwrap_or_else(|| panic!("no {name} in {result}"));
    let number = |name: &str| result[name].as_f64().unwrap_or_else(|| panic!("no {name} in {result}"));
    assert!(count("pages_fetched") >= pages_min, "{result}");
    assert!(count("documents_kept") > 0 && count("tokens") > 0, "{result}");
    assert_eq!(count("documents_kept") + count("documents_rejected"), count("pages_fetched"));
    assert_eq!(result["plan"]["tensor_parallel"], 2);
    assert_eq!(result["plan"]["pipeline_parallel"], 2);
    assert!(number("loss_last") < number("loss_first"));
    assert!(number("perplexity") > 1.0);
    assert_eq!(result["weights_blake3"].as_str().map(str::len), Some(64));
    assert_eq!(count("replicas"), 2);
    assert!(result["answer"].is_string() && result["artifacts"].is_object());
    assert!(result["drift"]["js_distance"].is_number(), "{result}");
    for file in
        ["evaluate/report.html", "clean/data-card.html", "train/model.safetensors", "train/tokenizer.json"]
    {
        let path = Path::new(result["results"].as_str().unwrap()).join(file);
        assert!(path.exists(), "{} is not there", path.display());
    }
}

/// Runs a quickstart to its end and checks that it leaves no process behind.
fn quickstart(arguments: &[&str], pages_min: u64) -> Value {
    let run = Running::start(&[&["quickstart"], arguments].concat());
    let dir = run.dir().display().to_string();
    let (folder, result) = run.finish_and_keep();
    check(&result, pages_min);
    let left = Process::in_folder(&dir);
    assert!(left.is_empty(), "left behind: {left:?}");
    drop(folder);
    result
}

#[test]
fn the_whole_way_on_a_handbook_in_three_editions() {
    let _alone = alone();
    let Some(nginx) = Nginx::serve_handbook() else { return };
    let result = quickstart(&["--site", &format!("http://{}/", nginx.address)], 300);
    println!("{result}");
    assert!(result["seconds"].as_f64().unwrap() < 300.0, "a quickstart takes less than five minutes");
}

#[test]
fn the_whole_way_on_a_small_folder() {
    let _alone = alone();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../node/site");
    quickstart(&["--site", folder, "--steps", "30"], 30);
}
