//! The README's first command, on real documentation behind a real web server, and on the site in
//! the binary.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sixfold_tests::{Process, Running, alone, is_amid, kill, outcome, root};

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
    let page = std::fs::read_to_string(result["training_report"].as_str().unwrap()).unwrap();
    for section in ["loss", "curves", "time", "ranks", "events", "plan", "lineage"] {
        assert!(
            page.contains(&format!("<section id=\"{section}\">")),
            "the training's report has no {section}"
        );
    }
}

/// Waits for the end of a quickstart and checks that it leaves no process behind.
fn finish(run: Running, pages_min: u64) -> Value {
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
    let run = Running::start(&["quickstart", "--site", &format!("http://{}/", nginx.address)]);
    let result = finish(run, 300);
    println!("{result}");
    assert!(result["seconds"].as_f64().unwrap() < 300.0, "a quickstart takes less than five minutes");
}

#[test]
fn the_whole_way_on_a_small_folder_whatever_dies() {
    let _alone = alone();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../node/site");
    let arguments = ["quickstart", "--site", folder, "--steps", "60"];
    let undisturbed = finish(Running::start(&arguments), 30);
    let mut run = Running::start(&arguments);
    run.wait_for("training", |job| is_amid(job, ("train", "step", 5)));
    kill(&run.coordinator());
    run.wait_for("training on", |job| is_amid(job, ("train", "step", 20)));
    run.destroy_node("node-2");
    let disturbed = finish(run, 30);
    println!("{}", disturbed["recoveries"]);
    assert_eq!(outcome(&disturbed), outcome(&undisturbed));
    assert_eq!(disturbed["answer"], undisturbed["answer"]);
}

#[test]
fn a_run_in_the_folder_of_an_earlier_one_has_the_cluster_for_itself() {
    let _alone = alone();
    let job = tempfile::NamedTempFile::new().unwrap();
    let text = root().join("LICENSE-MIT");
    std::fs::write(
        &job,
        format!(
            "name = \"small\"\n[stage.data]\nkind = \"import\"\ntext = \"{}\"\n\
             [stage.tokens]\nkind = \"tokenize\"\ninputs = [\"data\"]\ntokenizer = \"bytes\"\n\
             [stage.train]\nkind = \"train\"\ninputs = [\"tokens\"]\nsteps = 2\n\
             [stage.serve]\nkind = \"serve\"\ninputs = [\"train\"]\nkv_cache_mib = 8\n",
            text.display()
        ),
    )
    .unwrap();
    let arguments = ["run", job.path().to_str().unwrap(), "--local", "2"];
    let (first, result) = Running::start(&arguments).finish_and_keep();
    assert_eq!(result["state"], "serving");
    let mut second = first.again(&[&arguments[..], &["--keep"]].concat());
    let home = second.dir().join("coordinator");
    let jobs = || sixfold_tests::result(&["jobs", "--json", "--home", home.to_str().unwrap()]);
    second.wait_for("the new job", |_| jobs().as_array().is_some_and(|jobs| jobs.len() == 2));
    let state = |number: u64| {
        let jobs = jobs();
        let job = jobs.as_array().unwrap().iter().find(|job| job["job"] == number).cloned();
        job.unwrap()["state"].clone()
    };
    second.wait_for("the new job", |_| state(2) == "serving");
    assert_eq!(state(1), "cancelled");
    second.stop();
}
